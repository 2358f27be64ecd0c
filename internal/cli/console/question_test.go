package console

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orlop.dev/orlop/api/subresources/v1alpha2"
)

func TestDescribe(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	since := &metav1.MicroTime{Time: now.Add(-5 * time.Minute)}
	tests := map[string]struct {
		holder v1alpha2.StreamHolder
		want   string
	}{
		"the command line has a name of its own":      {v1alpha2.StreamHolder{Holder: "alice", StartTime: since, Client: "d8"}, "alice (for 5m, command line)"},
		"so has the web console":                      {v1alpha2.StreamHolder{Holder: "alice", StartTime: since, Client: "console"}, "alice (for 5m, web console)"},
		"nothing of others reaches the terminal raw":  {v1alpha2.StreamHolder{Holder: "al\x1b[31mice", StartTime: since, Client: "x\x07y"}, "al[31mice (for 5m, xy)"},
		"a long name is cut":                          {v1alpha2.StreamHolder{Holder: "a", StartTime: since, Client: strings.Repeat("é", 99)}, "a (for 5m, " + strings.Repeat("é", 60) + ")"},
		"a clock that is ahead counts no time at all": {v1alpha2.StreamHolder{Holder: "a", StartTime: &metav1.MicroTime{Time: now.Add(time.Hour)}}, "a (for 0s)"},
		"an answer without a time":                    {v1alpha2.StreamHolder{Holder: "a", Client: "d8"}, "a (since an unknown time, command line)"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := describe(test.holder, now); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
