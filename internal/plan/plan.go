// Package plan builds what controllers create: pods, claims, secrets and instances,
// from objects that were observed.
//
// Everything here is pure: values in, objects out, the same for the same input. No
// client, no clock, no randomness. Names are made here too, so that a controller
// that has forgotten everything builds the same object under the same name; a change
// of a name is therefore a change that strands what already exists.
package plan
