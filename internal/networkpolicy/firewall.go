package networkpolicy

import (
	"context"
	"fmt"

	"sigs.k8s.io/knftables"
)

// Firewall is the kernel's table. It remembers what it has applied, so that one new
// pod costs one element.
type Firewall struct {
	nft     knftables.Interface
	applied *Table
}

// NewFirewall finds nft in the path and tries whether the kernel takes tables from
// this process. It touches nothing.
func NewFirewall() (*Firewall, error) {
	nft, err := knftables.New(knftables.IPv4Family, TableName)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &Firewall{nft: nft}, nil
}

// Apply makes the kernel's table the wanted one, in one transaction: packets meet
// the old table or the new one. What an earlier process left is replaced by the
// first call. It reports whether anything had to change.
func (f *Firewall) Apply(ctx context.Context, want Table) (bool, error) {
	if f.applied != nil {
		tx := f.nft.NewTransaction()
		want.update(*f.applied, tx)
		if tx.NumOperations() == 0 {
			return false, nil
		}
		if err := f.nft.Run(ctx, tx); err == nil {
			f.applied = &want
			return true, nil
		}
		// Somebody else has changed the table: only the whole is sure to be right.
	}
	f.applied = nil
	tx := f.nft.NewTransaction()
	want.replace(tx)
	if err := f.nft.Run(ctx, tx); err != nil {
		return false, fmt.Errorf("replace table %s: %w", TableName, err)
	}
	f.applied = &want
	return true, nil
}
