package networkpolicy

import (
	"maps"
	"slices"

	"sigs.k8s.io/knftables"
)

// TableName is our table, of the family ip. It belongs to this package alone.
const TableName = "orlop-network-policy"

// Table is an nftables table as data. Rules and elements are written as nft takes
// them.
type Table struct {
	Sets   map[string]Set
	Maps   map[string]Map
	Chains map[string]Chain
}

// Set is a set of addresses or of what belongs to them.
type Set struct {
	Type     string
	Comment  string
	Elements []string // sorted
}

// Map leads from an address to the verdict on its packets.
type Map struct {
	Verdicts map[string]string
}

// Chain is a list of rules. One with a priority is called for every packet that the
// node forwards.
type Chain struct {
	Base     bool
	Priority string // of a base chain
	Comment  string
	Rules    []string
}

// replace writes a table in place of whatever is there, in one transaction.
func (t Table) replace(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	t.update(Table{}, tx)
}

// update writes what makes the table out of an old one. What is referred to is made
// before and removed after what refers to it.
func (t Table) update(old Table, tx *knftables.Transaction) {
	for _, name := range sorted(t.Sets) {
		if _, there := old.Sets[name]; !there {
			tx.Add(&knftables.Set{Name: name, Type: t.Sets[name].Type, Comment: comment(t.Sets[name].Comment)})
		}
	}
	for _, name := range sorted(t.Maps) {
		if _, there := old.Maps[name]; !there {
			tx.Add(&knftables.Map{Name: name, Type: "ipv4_addr : verdict"})
		}
	}
	for _, name := range sorted(t.Chains) {
		if _, there := old.Chains[name]; !there {
			tx.Add(t.Chains[name].object(name))
		}
	}
	for _, name := range sorted(t.Chains) {
		before, there := old.Chains[name]
		if there && slices.Equal(before.Rules, t.Chains[name].Rules) {
			continue
		}
		if there {
			tx.Flush(&knftables.Chain{Name: name})
		}
		for _, rule := range t.Chains[name].Rules {
			tx.Add(&knftables.Rule{Chain: name, Rule: rule})
		}
	}
	t.updateElements(old, tx)
	t.removeRest(old, tx)
}

// updateElements brings the contents of sets and maps up to date.
func (t Table) updateElements(old Table, tx *knftables.Transaction) {
	for _, name := range sorted(t.Sets) {
		before, after := old.Sets[name].Elements, t.Sets[name].Elements
		difference(before, after, func(e string) { tx.Delete(&knftables.Element{Set: name, Key: []string{e}}) })
		difference(after, before, func(e string) { tx.Add(&knftables.Element{Set: name, Key: []string{e}}) })
	}
	for _, name := range sorted(t.Maps) {
		before, after := old.Maps[name].Verdicts, t.Maps[name].Verdicts
		for _, key := range sorted(before) {
			if after[key] != before[key] {
				tx.Delete(&knftables.Element{Map: name, Key: []string{key}})
			}
		}
		for _, key := range sorted(after) {
			if after[key] != before[key] {
				tx.Add(&knftables.Element{Map: name, Key: []string{key}, Value: []string{after[key]}})
			}
		}
	}
}

// removeRest removes what only the old table has. Chains are emptied first, because
// they refer to each other.
func (t Table) removeRest(old Table, tx *knftables.Transaction) {
	var gone []string
	for _, name := range sorted(old.Chains) {
		if _, kept := t.Chains[name]; !kept {
			gone = append(gone, name)
			tx.Flush(&knftables.Chain{Name: name})
		}
	}
	for _, name := range gone {
		tx.Delete(&knftables.Chain{Name: name})
	}
	for _, name := range sorted(old.Maps) {
		if _, kept := t.Maps[name]; !kept {
			tx.Delete(&knftables.Map{Name: name})
		}
	}
	for _, name := range sorted(old.Sets) {
		if _, kept := t.Sets[name]; !kept {
			tx.Delete(&knftables.Set{Name: name})
		}
	}
}

func (c Chain) object(name string) *knftables.Chain {
	o := &knftables.Chain{Name: name, Comment: comment(c.Comment)}
	if c.Base {
		o.Type = knftables.PtrTo(knftables.FilterType)
		o.Hook = knftables.PtrTo(knftables.ForwardHook)
		o.Priority = knftables.PtrTo(knftables.BaseChainPriority(c.Priority))
	}
	return o
}

// comment shortens a comment to what nft takes; it is for people only.
func comment(text string) *string {
	if text == "" {
		return nil
	}
	return knftables.PtrTo(text[:min(len(text), knftables.CommentLengthMax)])
}

// difference calls f with each element of a that b lacks; both are sorted.
func difference(a, b []string, f func(string)) {
	for _, e := range a {
		for len(b) > 0 && b[0] < e {
			b = b[1:]
		}
		if len(b) == 0 || b[0] != e {
			f(e)
		}
	}
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
