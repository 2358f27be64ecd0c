// Package admission holds the webhooks of our kinds: defaults that need to look at
// other objects, and rules that neither the schema nor CEL can say.
//
// A rule belongs here only if breaking it could never work; what may become right by
// itself (an image that does not exist yet) is a condition, not a refusal. Fields whose
// behaviour does not exist yet are refused on CREATE, and on an UPDATE that changes
// them, never on objects being deleted or left unchanged: an upgrade must not lock
// anybody out of their own objects.
package admission
