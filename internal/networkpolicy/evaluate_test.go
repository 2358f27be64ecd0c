package networkpolicy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// packet is what a rule may ask about.
type packet struct {
	in, out          string // links
	source, target   netip.Addr
	protocol         string // tcp, udp, sctp, icmp
	sport, dport     int    // 0 for protocols without ports
	state, direction string // of its connection
	turned           bool   // the connection's mark
	syn              bool
	lost             bool // no route leads back to its sender over its link
}

// lets plays the kernel: it sends a packet through the base chains of a table, as
// it is written. A rule that it cannot read is an error of the test.
func lets(t *testing.T, table Table, p packet) bool {
	t.Helper()
	for _, base := range []string{"sources", "midstream", "egress", "ingress"} { // by priority
		if verdict(t, table, base, &p) == "drop" {
			return false
		}
	}
	return true
}

// verdict walks one chain; "" is its end.
func verdict(t *testing.T, table Table, chain string, p *packet) string {
	t.Helper()
	c, ok := table.Chains[chain]
	if !ok {
		t.Fatalf("no chain %q", chain)
	}
	for _, line := range c.Rules {
		v, err := play(table, line, p)
		if err != nil {
			t.Fatalf("rule %q of %s: %v", line, chain, err)
		}
		word, to, _ := strings.Cut(v, " ")
		switch word {
		case "accept", "drop":
			return v
		case "jump":
			if v := verdict(t, table, to, p); v != "" {
				return v
			}
		case "goto":
			return verdict(t, table, to, p)
		case "":
		default:
			t.Fatalf("rule %q of %s: verdict %q", line, chain, v)
		}
	}
	return ""
}

// play matches one rule and returns its verdict, "" if it does not match.
func play(table Table, line string, p *packet) (string, error) {
	words := strings.Fields(line)
	for len(words) > 0 {
		switch words[0] {
		case "accept", "drop":
			return words[0], nil
		case "jump", "goto":
			return words[0] + " " + words[1], nil
		}
		values, rest, err := expression(words, p)
		if err != nil {
			return "", err
		}
		words = rest
		switch {
		case words[0] == "vmap":
			return table.Maps[words[1][1:]].Verdicts[values[0]], nil
		case words[0] == "set": // only ever the mark
			p.turned = true
			return "", nil
		}
		ok, rest, err := compare(table, values, words)
		if err != nil {
			return "", err
		}
		if !ok {
			return "", nil
		}
		words = rest
	}
	return "", nil
}

// expression reads what is compared, parts joined by dots. A part that the packet
// does not have is "-", which nothing equals.
func expression(words []string, p *packet) (values []string, rest []string, err error) {
	number := func(protocol string, n int) string {
		if p.protocol != protocol {
			return "-"
		}
		return strconv.Itoa(n)
	}
	for {
		first, second := words[0], words[1]
		var value string
		used := 2
		switch first + " " + second {
		case "ip saddr":
			value = p.source.String()
		case "ip daddr":
			value = p.target.String()
		case "tcp sport", "udp sport", "sctp sport":
			value = number(first, p.sport)
		case "tcp dport", "udp dport", "sctp dport":
			value = number(first, p.dport)
		case "tcp flags": // & syn ==
			value, used = map[bool]string{false: "0", true: "1"}[p.syn], 4
			if p.protocol != "tcp" {
				value = "-"
			}
		case "fib saddr": // . iif oif
			value, used = map[bool]string{false: "there", true: "missing"}[p.lost], 5
		case "meta l4proto":
			value = p.protocol
		case "ct state":
			value = p.state
		case "ct direction":
			value = p.direction
		case "ct mark":
			value = map[bool]string{false: "0", true: "1"}[p.turned]
			if words[2] == "&" {
				used = 4
			}
		default:
			switch first {
			case "iifname":
				value, used = p.in, 1
			case "oifname":
				value, used = p.out, 1
			default:
				return nil, nil, fmt.Errorf("unknown expression %q", first+" "+second)
			}
		}
		values, words = append(values, value), words[used:]
		if words[0] != "." {
			return values, words, nil
		}
		words = words[1:]
	}
}

// compare reads an operator and what stands on its right.
func compare(table Table, values, words []string) (ok bool, rest []string, err error) {
	negative := words[0] == "!="
	switch words[0] {
	case "!=", "==":
		words = words[1:]
	case "<", ">=":
		left, err := strconv.Atoi(values[0])
		if err != nil {
			return false, words[2:], nil //nolint:nilerr // the packet has no such field
		}
		right, err := strconv.Atoi(words[1])
		return (left < right) == (words[0] == "<"), words[2:], err
	}
	var choices []string
	switch {
	case words[0] == "{":
		end := slices.Index(words, "}")
		for _, w := range words[1:end] {
			choices = append(choices, strings.TrimSuffix(w, ","))
		}
		words = words[end+1:]
	case strings.HasPrefix(words[0], "@"):
		set, found := table.Sets[words[0][1:]]
		if !found {
			return false, nil, fmt.Errorf("no set %s", words[0])
		}
		if values[0] == "-" || values[len(values)-1] == "-" {
			return false, words[1:], nil
		}
		return slices.Contains(set.Elements, strings.Join(values, " . ")) != negative, words[1:], nil
	default:
		choices, words = []string{words[0]}, words[1:]
	}
	if values[0] == "-" {
		return false, words, nil
	}
	one := slices.ContainsFunc(choices, func(c string) bool { return covers(c, values[0]) })
	return one != negative, words, nil
}

// covers says whether a constant, a range, a prefix or a pattern has a value.
func covers(constant, value string) bool {
	if constant == value {
		return true
	}
	if pattern, ok := strings.CutSuffix(strings.Trim(constant, `"`), "*"); ok {
		return strings.HasPrefix(value, pattern)
	}
	if constant == turnedMark {
		return value == "1"
	}
	if p, err := netip.ParsePrefix(constant); err == nil {
		a, err := netip.ParseAddr(value)
		return err == nil && p.Contains(a)
	}
	if first, last, ok := strings.Cut(constant, "-"); ok {
		n, _ := strconv.Atoi(value)
		low, errLow := strconv.Atoi(first)
		high, errHigh := strconv.Atoi(last)
		return errLow == nil && errHigh == nil && low <= n && n <= high
	}
	return false
}
