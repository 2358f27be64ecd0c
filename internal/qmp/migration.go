package qmp

import (
	"context"
	"fmt"
)

// MigrationStatus is how far a migration is, at either end.
type MigrationStatus string

// The states of a migration that are used here.
const (
	// MigrationNone: there was no migration in this process yet.
	MigrationNone           MigrationStatus = ""
	MigrationSetup          MigrationStatus = "setup"
	MigrationActive         MigrationStatus = "active"
	MigrationPreSwitchover  MigrationStatus = "pre-switchover"
	MigrationDevice         MigrationStatus = "device"
	MigrationWaitUnplug     MigrationStatus = "wait-unplug"
	MigrationCancelling     MigrationStatus = "cancelling"
	MigrationCancelled      MigrationStatus = "cancelled"
	MigrationCompleted      MigrationStatus = "completed"
	MigrationFailed         MigrationStatus = "failed"
	migrationNoneSpelledOut MigrationStatus = "none"
)

// Migration is the answer to query-migrate.
type Migration struct {
	Status MigrationStatus `json:"status"`
	// ErrorDescription is QEMU's reason of a failure.
	ErrorDescription string `json:"error-desc"`
	// TotalTime, SetupTime, Downtime and ExpectedDowntime in milliseconds.
	TotalTime        int64 `json:"total-time"`
	SetupTime        int64 `json:"setup-time"`
	Downtime         int64 `json:"downtime"`
	ExpectedDowntime int64 `json:"expected-downtime"`
	// Throttle is how much the CPUs are slowed down, in percent.
	Throttle int32 `json:"cpu-throttle-percentage"`
	RAM      struct {
		// Total, Remaining and Transferred in bytes.
		Total       int64 `json:"total"`
		Remaining   int64 `json:"remaining"`
		Transferred int64 `json:"transferred"`
		// Syncs is how often the dirty pages were collected.
		Syncs int32 `json:"dirty-sync-count"`
		// DirtyPages is how many pages the guest dirties in a second.
		DirtyPages int64 `json:"dirty-pages-rate"`
	} `json:"ram"`
}

// QueryMigrate says how the last migration of this process goes, in either direction.
func (c *Client) QueryMigrate(ctx context.Context) (Migration, error) {
	var m Migration
	err := c.Execute(ctx, "query-migrate", nil, &m)
	if m.Status == migrationNoneSpelledOut {
		m.Status = MigrationNone
	}
	return m, err
}

// The capabilities of a migration that are used here.
const (
	// CapabilityReturnPath lets the target answer the source.
	CapabilityReturnPath = "return-path"
	// CapabilityPauseBeforeSwitchover makes the source wait for MigrateContinue
	// between stopping the guest and sending the last of it.
	CapabilityPauseBeforeSwitchover = "pause-before-switchover"
	// CapabilityLateBlockActivate keeps the target from taking its disks before `cont`.
	CapabilityLateBlockActivate = "late-block-activate"
	// CapabilityAutoConverge slows the guest's CPUs down until the copy keeps up.
	CapabilityAutoConverge = "auto-converge"
	// CapabilityEvents announces changes by EventMigration and EventMigrationPass.
	CapabilityEvents = "events"
)

// SetMigrationCapabilities switches capabilities on or off; others stay as they are.
func (c *Client) SetMigrationCapabilities(ctx context.Context, capabilities map[string]bool) error {
	type state struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	var all []state
	for name, on := range capabilities {
		all = append(all, state{name, on})
	}
	return c.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": all}, nil)
}

// MigrationParameters are the knobs of a migration; zero fields stay as they are.
type MigrationParameters struct {
	// MaxBandwidth in bytes per second.
	MaxBandwidth int64 `json:"max-bandwidth,omitempty"`
	// DowntimeLimit in milliseconds.
	DowntimeLimit int64 `json:"downtime-limit,omitempty"`
}

// SetMigrationParameters changes them, also while a migration runs.
func (c *Client) SetMigrationParameters(ctx context.Context, p MigrationParameters) error {
	return c.Execute(ctx, "migrate-set-parameters", p, nil)
}

// Migrate begins to send the guest to an address such as "unix:/path". It returns at
// once.
func (c *Client) Migrate(ctx context.Context, uri string) error {
	return c.Execute(ctx, "migrate", map[string]any{"uri": uri}, nil)
}

// MigrateIncoming makes a process that was started with `-incoming defer` listen at an
// address.
func (c *Client) MigrateIncoming(ctx context.Context, uri string) error {
	return c.Execute(ctx, "migrate-incoming", map[string]any{"uri": uri}, nil)
}

// MigrateContinue lets a migration go on that stands in MigrationPreSwitchover.
func (c *Client) MigrateContinue(ctx context.Context) error {
	if err := c.Execute(ctx, "migrate-continue", map[string]any{"state": MigrationPreSwitchover}, nil); err != nil {
		return fmt.Errorf("continue migration: %w", err)
	}
	return nil
}

// MigrateCancel calls a migration off; without one it does nothing.
func (c *Client) MigrateCancel(ctx context.Context) error {
	return c.Execute(ctx, "migrate_cancel", nil, nil)
}

// Names of the events of a migration.
const (
	EventMigration     = "MIGRATION"
	EventMigrationPass = "MIGRATION_PASS"
)

// MigrationEvent is the data of MIGRATION.
type MigrationEvent struct {
	Status MigrationStatus `json:"status"`
}
