package portforward

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePort(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text    string
		want    port
		wantErr bool
	}{
		"one number is both ends, over TCP":        {text: "22", want: port{"tcp", 22, 22}},
		"two numbers are local and target":         {text: "8080:80", want: port{"tcp", 8080, 80}},
		"the protocol comes first":                 {text: "udp/5353:53", want: port{"udp", 5353, 53}},
		"its case does not matter":                 {text: "TCP/1:2", want: port{"tcp", 1, 2}},
		"local zero asks the system for a port":    {text: "0:80", want: port{"tcp", 0, 80}},
		"zero alone names no target":               {text: "0", wantErr: true},
		"65536 does not fit":                       {text: "65536", wantErr: true},
		"other protocols are refused, not guessed": {text: "sctp/22", wantErr: true},
		"service names are refused":                {text: "ssh", wantErr: true},
		"an empty target is a typo":                {text: "80:", wantErr: true},
		"a negative number is refused":             {text: "-1", wantErr: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parsePort(test.text)
			if (err != nil) != test.wantErr {
				t.Fatalf("got error %v, want error %v", err, test.wantErr)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(port{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}
