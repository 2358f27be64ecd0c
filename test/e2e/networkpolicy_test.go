//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestStory12NetworkPolicy forbids and allows between two pods on two nodes and a
// machine, in all directions, and while connections exist.
func TestStory12NetworkPolicy(t *testing.T) {
	ns := namespace(t)
	nodes := strings.Fields(d8(t, "k", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(nodes) < 2 {
		t.Fatalf("the story needs two nodes, there are %q", nodes)
	}
	apply(t, ns, image("tiny", "tiny.qcow2")+disk("root", "shared", "256Mi", "tiny")+
		machine("linux", "128Mi", []string{"root"}, "nodeSelector: {kubernetes.io/hostname: "+nodes[0]+"}"))
	apply(t, ns, speaker(t, "a", nodes[0])+speaker(t, "b", nodes[1]))
	reaches(t, long, ns, "vm/linux", ".status.phase", "Running")
	s := &policyStory{t: t, ns: ns, addresses: map[string]string{"linux": field(t, ns, "vm/linux", ".status.ipAddress")}}
	for _, pod := range []string{"a", "b"} {
		reaches(t, soon, ns, "pod/"+pod, ".status.phase", "Running")
		s.addresses[pod] = field(t, ns, "pod/"+pod, ".status.podIP")
	}
	s.console = open(t, ns, "linux")
	s.console.prompt(soon)
	s.console.send("(nc -ll -p 7000 -e cat &); echo echo=$((3+4))")
	s.console.expect(soon, "echo=7")

	everything := "a>b a>linux b>a b>linux linux>a linux>b"
	s.expect("without a policy", everything)
	inside, outside := s.talk("b"), s.call()
	for who, l := range map[string]*talk{"pod b": inside, "the host": outside} {
		eventually(t, soon, who+" hears the guest", l.lives)
	}

	apply(t, ns, policy("deny", "{}", "policyTypes: [Ingress, Egress]"))
	s.expect("under a default deny", "")
	for who, l := range map[string]*talk{"pod b": inside, "the host": outside} {
		eventually(t, soon, "the connection that "+who+" had already made is cut by a default deny", func() bool { return !l.lives() })
	}

	// Each on another node than the other, and the machine on either side.
	apply(t, ns, allow("a", "linux")+allow("linux", "b")+allow("b", "a"))
	s.expect("with three ways open", "a>linux linux>b b>a")
	d8(t, "k", "-n", ns, "delete", "netpol", "--all")
	s.expect("without policies again", everything)
	eventually(t, long, "the host's connection goes on when it may", outside.lives)

	// The host of the cluster is a stranger to it: a range of addresses.
	apply(t, ns, policy("not-the-host", "{matchLabels: {app: linux}}",
		"policyTypes: [Egress]", "egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: ["+host+"/32]}}]}]"))
	s.expect("with the host forbidden to the guest", everything)
	if code := s.guest("wget -q -T 3 -O /dev/null " + guests + "/; echo code=$?;"); code == "code=0" {
		t.Error("the guest reaches a range that its egress excepts")
	}
	eventually(t, soon, "the guest still answers the host, which it may not ask", outside.lives)
	d8(t, "k", "-n", ns, "delete", "netpol", "--all")
	eventually(t, soon, "the guest reaches the host again", func() bool {
		return s.guest("wget -q -T 3 -O /dev/null "+guests+"/; echo code=$?;") == "code=0"
	})
}

// policyStory is who takes part in it.
type policyStory struct {
	t         *testing.T
	ns        string
	addresses map[string]string
	console   *terminal
}

// expect waits until exactly the given ways are open, as "from>to". A way that is
// open may be slow to answer; one that is shut never answers.
func (s *policyStory) expect(when, ways string) {
	s.t.Helper()
	want := strings.Fields(ways)
	slices.Sort(want)
	var got []string
	deadline := time.Now().Add(long)
	for {
		if got = s.open(); slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: open are %q, want %q", when, got, want)
		}
	}
}

// open tries all ways at once.
func (s *policyStory) open() []string {
	found := make(chan []string)
	pods := 0
	for from := range s.addresses {
		if from == "linux" {
			continue
		}
		pods++
		script := s.tries(from, "timeout 3 bash -c '</dev/tcp/%s/8080' 2>/dev/null")
		go func() {
			output, _ := try(s.t, "k", "-n", s.ns, "exec", from, "-c", "shell", "--", "/usr/bin/bash", "-c", script)
			found <- ends(from, output)
		}()
	}
	all := ends("linux", s.guest(s.tries("linux", "wget -q -T 3 -O /dev/null http://%s:8080/health")))
	for range pods {
		all = append(all, <-found...)
	}
	slices.Sort(all)
	return all
}

// tries is a script that tries all others at once, by a command for one address.
func (s *policyStory) tries(from, command string) string {
	var script strings.Builder
	for to, address := range s.addresses {
		if to != from {
			fmt.Fprintf(&script, command+" && echo way=$((1))%s & ", address, to)
		}
	}
	return script.String() + "wait;"
}

// ends reads "way=1x" of an output; what was typed, which a console shows too, is not
// computed yet.
func ends(from, output string) []string {
	var ways []string
	for _, word := range strings.Fields(output) {
		if to, ok := strings.CutPrefix(word, "way=1"); ok {
			ways = append(ways, from+">"+to)
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(ways)))
}

// guest runs a line in the guest and returns what it printed with a "=" in it.
func (s *policyStory) guest(line string) string {
	s.console.lock.Lock()
	s.console.output.Reset()
	s.console.lock.Unlock()
	s.console.send(line + " echo ready=$((40+2))")
	output := s.console.expect(long, `(?s).*ready=42`)
	var words []string
	for _, word := range strings.Fields(output) {
		if strings.HasPrefix(word, "way=1") || strings.HasPrefix(word, "code=") && !strings.Contains(word, "$") {
			words = append(words, word)
		}
	}
	return strings.Join(words, " ")
}

// talk is a connection on which a byte goes and comes all the time.
type talk struct{ heard atomic.Int64 }

// lives says whether something is heard within a few seconds from now on.
func (l *talk) lives() bool {
	time.Sleep(time.Second) // what is under way arrives
	before := l.heard.Load()
	for range 20 {
		time.Sleep(100 * time.Millisecond)
		if l.heard.Load() > before {
			return true
		}
	}
	return false
}

// talk makes a pod talk with the guest over one connection.
func (s *policyStory) talk(pod string) *talk {
	s.t.Helper()
	l := &talk{}
	command := d8Command(s.t.Context(), "k", "-n", s.ns, "exec", pod, "-c", "shell", "--", "/usr/bin/bash", "-c",
		"exec 3<>/dev/tcp/"+s.addresses["linux"]+"/7000; while echo x >&3 && read -r word <&3; do echo $word; sleep 0.1; done")
	command.Stdout = counter{l}
	if err := command.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = command.Process.Kill(); _ = command.Wait() })
	return l
}

// call does the same from the host.
func (s *policyStory) call() *talk {
	s.t.Helper()
	var c net.Conn
	eventually(s.t, soon, "the guest's echo answers the host", func() (ok bool) {
		var err error
		c, err = net.DialTimeout("tcp", net.JoinHostPort(s.addresses["linux"], "7000"), 2*time.Second)
		return err == nil
	})
	s.t.Cleanup(func() { _ = c.Close() })
	l := &talk{}
	go func() { _, _ = io.Copy(counter{l}, c) }()
	go func() {
		for {
			if _, err := c.Write([]byte("x\n")); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()
	return l
}

// counter counts what is written to it.
type counter struct{ l *talk }

func (c counter) Write(p []byte) (int, error) {
	c.l.heard.Add(int64(len(p)))
	return len(p), nil
}

// speaker is a pod that answers on port 8080, with a shell beside it.
func speaker(t *testing.T, name, node string) string {
	server := strings.Replace(clientImage(t), "test-client", "coredns", 1)
	return `---
apiVersion: v1
kind: ConfigMap
metadata: {name: ` + name + `}
data: {Corefile: ".:1053 {\n  health :8080\n}\n"}
---
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `, labels: {app: ` + name + `}}
spec:
  nodeName: ` + node + `
  terminationGracePeriodSeconds: 0
  containers:
  - {name: shell, image: "` + clientImage(t) + `", command: [/usr/bin/sleep, infinity]}
  - name: server
    image: ` + server + `
    args: [-conf, /etc/coredns/Corefile]
    volumeMounts: [{name: config, mountPath: /etc/coredns}]
  volumes: [{name: config, configMap: {name: ` + name + `}}]
`
}

// policy is a NetworkPolicy; more lines of its spec follow the selector.
func policy(name, selector string, spec ...string) string {
	return `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ` + name + `}
spec:
  podSelector: ` + selector + `
  ` + strings.Join(spec, "\n  ") + "\n"
}

// allow opens one way on both of its ends.
func allow(from, to string) string {
	selector := func(app string) string { return "{matchLabels: {app: " + app + "}}" }
	peer := func(app string) string { return "[{podSelector: " + selector(app) + "}]" }
	return policy("to-"+from+"-"+to, selector(from), "policyTypes: [Egress]", "egress: [{to: "+peer(to)+", ports: [{port: 8080}]}]") +
		policy("from-"+from+"-"+to, selector(to), "policyTypes: [Ingress]", "ingress: [{from: "+peer(from)+", ports: [{port: 8080}]}]")
}
