// Package policy answers the questions that several parts of the product ask about
// objects: should this machine run, is that process proven dead, does this size fit
// the class, which changes wait for a restart, may this disk be used.
//
// Everything here is pure: API values in, a verdict out. No client, no clock, no
// logging; the time is an argument where it matters. A question that two steps or
// two loops ask belongs here, so that they can never answer it differently.
package policy
