// Package image is the controller of VirtualImage and ClusterVirtualImage: it brings
// an image from its data source into DVCR by a short-lived importer pod, tells how
// far that is, and removes the image from DVCR when the object is deleted.
//
// Both kinds share one core. What differs (scope, names, the fields of the status)
// is said by a kind value; the steps never ask which kind they serve.
//
// The only memory is the attempt record in an annotation of the object: it is
// patched before anything is done because of it, and the pod of an attempt goes
// only after its outcome has been recorded. An image is never taken from the
// registry while a machine uses it or a disk is being filled from it.
package image
