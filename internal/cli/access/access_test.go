package access_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"orlop.dev/orlop/internal/cli/access"
)

func TestParseTarget(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text    string
		want    access.Target
		wantErr bool
	}{
		"a plain name takes the default namespace":             {text: "linux", want: access.Target{Namespace: "default", Name: "linux"}},
		"a namespace in the name wins":                         {text: "linux.prod", want: access.Target{Namespace: "prod", Name: "linux"}},
		"a dotted name keeps all but the last part":            {text: "a.b.prod", want: access.Target{Namespace: "prod", Name: "a.b"}},
		"a leading dot is a typo, not an empty name":           {text: ".prod", wantErr: true},
		"a trailing dot is a typo, not an empty namespace":     {text: "linux.", wantErr: true},
		"nothing at all is refused before anything is dialled": {text: "", wantErr: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := access.ParseTarget(test.text, "default")
			if (err != nil) != test.wantErr {
				t.Fatalf("got error %v, want error %v", err, test.wantErr)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
