// Package handler is the node agent, virt-handler: everything on a node that needs
// privilege. It watches the Instances of its node and brings each of them about
// through the launcher in the Instance's pod: wires the pod's network, opens the
// devices, hands them over, passes orders on, and reports what the launcher says.
//
// It decides nothing about virtual machines; that is the controller's. And it owns
// nothing that dies with it: a restarted handler finds every machine running, asks
// its launcher for the whole state and goes on. It never relies on having seen an
// event.
//
// Invariants:
//   - an Instance is started at most once, in the one pod its spec names, and only
//     after its status says so;
//   - an exit is written only on the launcher's word, which comes after waitpid;
//   - whatever a pod can write is hostile (package podfs, connect).
//
// One goroutine per Instance (worker) owns all that concerns it. Between its pure
// half (decide: memory in, acts out) and its hands (perform) there is no third.
package handler
