// Package settings reads what the administrator wants of the module as a whole:
// the ModuleConfig `virtualization`, settings version 1, and the flags that the
// chart gives to every component.
//
// Parse is pure and strict: an unknown field or a value that cannot work is an error
// that names the field, and the same function stands behind the webhook, so what is
// stored can always be read back. Load is the only function with a client. Defaults
// are applied here and nowhere else.
package settings
