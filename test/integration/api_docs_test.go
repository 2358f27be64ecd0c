package integration

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"orlop.dev/orlop/internal/testkit"
)

// pages maps the prefix of a kind's constants to its page.
var pages = map[string]string{
	"Machine":      "virtualmachine.md",
	"Class":        "virtualmachineclass.md",
	"Operation":    "virtualmachineoperation.md",
	"Disk":         "virtualdisk.md",
	"Image":        "virtualimage.md",
	"ClusterImage": "clustervirtualimage.md",
	"Address":      "virtualmachineipaddress.md",
	"Lease":        "virtualmachineipaddresslease.md",
	"Attachment":   "virtualmachineblockdeviceattachment.md",
	"MACAddress":   "virtualmachinemacaddress.md",
	"MACLease":     "virtualmachinemacaddresslease.md",
}

// TestPagesNameEveryConditionAndReason keeps docs/kinds complete: whoever meets a
// reason must find there what to do.
func TestPagesNameEveryConditionAndReason(t *testing.T) {
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	text := map[string]string{}
	for _, page := range pages {
		data, err := os.ReadFile(filepath.Join(root, "docs", "kinds", page))
		if err != nil {
			t.Fatal(err)
		}
		text[page] = string(data)
	}
	found := 0
	for _, file := range []string{"conditions.go", "reasons.go"} {
		for name, value := range constants(t, filepath.Join(root, "api", "core", "v1alpha2", file)) {
			for _, word := range []string{"Condition", "Reason"} {
				kind, _, ok := strings.Cut(name, word)
				page := pages[kind]
				if !ok || page == "" {
					continue
				}
				found++
				if word == "Reason" && !strings.Contains(text[page], "`"+value+"`") || !strings.Contains(text[page], value) {
					t.Errorf("docs/kinds/%s does not say what to do about %s %s", page, strings.ToLower(word), value)
				}
			}
		}
	}
	if found < 100 {
		t.Errorf("only %d constants were found: have their names changed?", found)
	}
}

// constants reads names and texts of a file's string constants.
func constants(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if literal, ok := spec.Values[0].(*ast.BasicLit); ok {
			if value, err := strconv.Unquote(literal.Value); err == nil {
				list[spec.Names[0].Name] = value
			}
		}
		return true
	})
	return list
}
