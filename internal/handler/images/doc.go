// Package images is a node's cache of images from DVCR: one file for each digest,
// fetched with the handler's own certificate, for guests that have an image attached.
//
// A file has its final name only when every byte of it has been checked against the
// digest and is on the disk, so what has the name may be used without another look,
// and what a crash left behind has another one and is removed at the start. The cache
// keeps below its limit and leaves the file system room, by removing what was used
// least recently; what a living machine of the node names is never removed.
//
// It knows of digests, not of machines: who needs what is asked of the caller.
package images
