package registry

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/sirupsen/logrus"
)

// unknownError is the code of errors for which the protocol has no word of its own:
// those of the storage.
const unknownError = "UNKNOWN"

const uriKey = "http.request.uri"

// errorHook carries what the protocol engine logs into our own log, except the
// errors that are the client's: it looks for blobs before it sends them.
type errorHook struct{}

// Levels implements logrus.Hook.
func (errorHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel}
}

// Fire implements logrus.Hook.
func (errorHook) Fire(e *logrus.Entry) error {
	if code, ok := e.Data["err.code"]; ok && !strings.EqualFold(fmt.Sprint(code), unknownError) {
		return nil
	}
	attrs := []any{}
	for _, key := range []string{"http.request.method", uriKey, "err.code", "err.detail", "err.message"} {
		if v, ok := e.Data[key]; ok {
			text := fmt.Sprint(v)
			if key == uriKey {
				// What follows the question mark is the signed state of an upload.
				text, _, _ = strings.Cut(text, "?")
			}
			attrs = append(attrs, key, text)
		}
	}
	slog.Error(e.Message, attrs...)
	return nil
}
