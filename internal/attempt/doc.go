// Package attempt keeps the books of work that is done by short-lived pods and may
// have to be tried again: imports into the registry and the filling of volumes.
//
// A Record is what must outlive a controller that forgets everything: which work
// was wanted, the number of the current attempt, how the last one ended. It is an
// annotation on the user's object and is always patched before anything is done
// because of it. A Judge turns the observed pod into a verdict, and Next turns
// record, verdict and clock into what is to be done now.
//
// Nothing here reads or writes the cluster; only HTTPProber talks to anybody, a
// running pod. The number of an attempt only grows:
// it is part of the pod's name, so an attempt that is over can never be confused
// with the present one.
package attempt
