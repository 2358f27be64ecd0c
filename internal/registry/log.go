package registry

import (
	"log/slog"

	"github.com/sirupsen/logrus"
)

// errorHook carries what the protocol engine logs into our own log.
type errorHook struct{}

// Levels implements logrus.Hook.
func (errorHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel}
}

// Fire implements logrus.Hook.
func (errorHook) Fire(e *logrus.Entry) error {
	attrs := []any{}
	for _, key := range []string{"http.request.method", "http.request.uri", "err.code", "err.detail", "err.message"} {
		if v, ok := e.Data[key]; ok {
			attrs = append(attrs, key, v)
		}
	}
	slog.Error(e.Message, attrs...)
	return nil
}
