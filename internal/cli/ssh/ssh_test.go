package ssh

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"orlop.dev/orlop/internal/cli/access"
)

func TestArguments(t *testing.T) {
	t.Parallel()
	target := access.Target{Namespace: "prod", Name: "linux"}
	tests := map[string]struct {
		options options
		want    []string
	}{
		"the proxy reaches the same cluster as we do": {
			options: options{program: "/usr/bin/d8", passed: []string{"--context=lab"}, target: target, port: 22, user: "cloud"},
			want: []string{"-o", "ProxyCommand=/usr/bin/d8 v port-forward --context=lab --stdio=true linux.prod 22",
				"-p", "22", "-l", "cloud", "--", "linux.prod"},
		},
		"odd characters survive ssh's tokens and the shell": {
			options: options{program: "/opt/my tools/100%/d8", target: target, port: 22, user: "cloud"},
			want: []string{"-o", "ProxyCommand='/opt/my tools/100%%/d8' v port-forward --stdio=true linux.prod 22",
				"-p", "22", "-l", "cloud", "--", "linux.prod"},
		},
		"files, extra arguments and a command are passed on": {
			options: options{program: "d8", target: target, port: 2222, user: "root", identity: "key", knownHosts: "/dev/null",
				extra: []string{"-v -A"}, remote: []string{"uname", "-a"}},
			want: []string{"-o", "ProxyCommand=d8 v port-forward --stdio=true linux.prod 2222", "-o", "UserKnownHostsFile=/dev/null",
				"-i", "key", "-v", "-A", "-p", "2222", "-l", "root", "--", "linux.prod", "uname", "-a"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(test.want, test.options.arguments()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
