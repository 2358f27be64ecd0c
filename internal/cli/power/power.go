package power

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/cli/access"
)

// confirmVariable set to "yes" answers every question.
const confirmVariable = "D8_VIRTUALIZATION_LIFECYCLE_CONFIRM"

type options struct {
	streams    genericiooptions.IOStreams
	verb       verb
	forceValue bool
	force      *bool
	wait       bool
	createOnly bool
	all        bool
	selector   string
	timeout    time.Duration
	yes        bool
	// node is where to move to; choosesNode says that the flag was given.
	node        string
	choosesNode bool
	// hostname is the value of that node's host name label.
	hostname string

	cluster *access.Cluster
	targets []access.Target
}

func (o *options) complete(ctx context.Context, flags *access.Flags, args []string) error {
	chosen := o.all || o.selector != ""
	switch {
	case chosen && len(args) > 0:
		return errors.New("name virtual machines, or choose them by --all or --label-selector, not both")
	case !chosen && len(args) == 0:
		return errors.New("name a virtual machine, or choose some by --all or --label-selector")
	}
	var err error
	if o.cluster, err = flags.Connect(); err != nil {
		return err
	}
	if o.choosesNode {
		if err := o.checkNode(ctx); err != nil {
			return err
		}
	}
	o.yes = o.yes || os.Getenv(confirmVariable) == "yes"
	if chosen {
		return o.choose(ctx)
	}
	for _, arg := range args {
		target, err := access.ParseTarget(arg, o.cluster.Namespace)
		if err != nil {
			return err
		}
		o.targets = append(o.targets, target)
	}
	return nil
}

// checkNode refuses a node that no machine can be moved to.
func (o *options) checkNode(ctx context.Context) error {
	if o.node == "" {
		return errors.New("--target-node-name: the name of the node is empty")
	}
	node := &metav1.PartialObjectMetadata{}
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	err := o.cluster.Client.Get(ctx, client.ObjectKey{Name: o.node}, node)
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("--target-node-name: node %s does not exist", o.node)
	case apierrors.IsForbidden(err):
		// Whoever may move machines need not see nodes: then the scheduler will tell.
		o.hostname = o.node
		return nil
	case err != nil:
		return fmt.Errorf("--target-node-name: get node %s: %w", o.node, err)
	}
	o.hostname = node.Labels[corev1.LabelHostname]
	return nil
}

// checkMove refuses to move a machine to where it is.
func (o *options) checkMove(ctx context.Context, target access.Target) error {
	vm := &v1alpha2.VirtualMachine{}
	err := o.cluster.Client.Get(ctx, client.ObjectKey{Namespace: target.Namespace, Name: target.Name}, vm)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("get virtual machine %s: %w", target, err)
	}
	if err == nil && vm.Status.NodeName == o.node {
		return fmt.Errorf("virtual machine %s runs on node %s already", target, o.node)
	}
	if o.hostname == "" {
		return fmt.Errorf("--target-node-name: node %s has no label %s to be chosen by", o.node, corev1.LabelHostname)
	}
	return nil
}

func (o *options) choose(ctx context.Context) error {
	selector, err := labels.Parse(o.selector)
	if err != nil {
		return fmt.Errorf("--label-selector: %w", err)
	}
	var list v1alpha2.VirtualMachineList
	if err := o.cluster.Client.List(ctx, &list, client.InNamespace(o.cluster.Namespace), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return fmt.Errorf("list virtual machines: %w", err)
	}
	if len(list.Items) == 0 {
		return fmt.Errorf("no virtual machine found in namespace %s", o.cluster.Namespace)
	}
	for i := range list.Items {
		o.targets = append(o.targets, access.Target{Namespace: list.Items[i].Namespace, Name: list.Items[i].Name})
	}
	return nil
}

// run treats each virtual machine; one that fails does not hold up the others.
func (o *options) run(ctx context.Context) error {
	createOnly := o.createOnly || len(o.targets) > 1
	answers := bufio.NewReader(o.streams.In)
	var errs []error
	for _, target := range o.targets {
		if !o.yes {
			agreed, err := o.confirm(ctx, answers, target)
			if err != nil {
				return err
			}
			if !agreed {
				o.say("Virtual machine %s is left as it is", target)
				continue
			}
		}
		operation, err := o.create(ctx, target)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		o.say("Operation %s created", operation.Name)
		if createOnly {
			continue
		}
		if err := o.follow(ctx, operation); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// confirm asks once; no answer is a no. A read of the terminal cannot be
// interrupted, the wait for it can.
func (o *options) confirm(ctx context.Context, answers *bufio.Reader, target access.Target) (bool, error) {
	fmt.Fprintf(o.streams.Out, "%s virtual machine %s in namespace %s? [y/N] ", o.verb.question, target.Name, target.Namespace)
	lines := make(chan string, 1)
	go func() {
		line, _ := answers.ReadString('\n')
		lines <- line
	}()
	select {
	case <-ctx.Done():
		o.say("")
		return false, ctx.Err()
	case line := <-lines:
		if !strings.HasSuffix(line, "\n") {
			o.say("") // input has ended; the question still stands on the line
		}
		answer := strings.ToLower(strings.TrimSpace(line))
		return answer == "y" || answer == "yes", nil
	}
}

func (o *options) create(ctx context.Context, target access.Target) (*v1alpha2.VirtualMachineOperation, error) {
	if o.choosesNode {
		if err := o.checkMove(ctx, target); err != nil {
			return nil, err
		}
	}
	operation := &v1alpha2.VirtualMachineOperation{
		ObjectMeta: metav1.ObjectMeta{Namespace: target.Namespace, GenerateName: target.Name + "-"},
		Spec: v1alpha2.VirtualMachineOperationSpec{
			Type:               o.verb.kind,
			VirtualMachineName: target.Name,
			Force:              o.force,
		},
	}
	if o.choosesNode {
		operation.Spec.Migrate = &v1alpha2.VirtualMachineOperationMigrate{NodeSelector: map[string]string{corev1.LabelHostname: o.hostname}}
	}
	if err := o.cluster.Client.Create(ctx, operation); err != nil {
		return nil, fmt.Errorf("%s %s: %w", o.verb.name, target.Name, err)
	}
	return operation, nil
}

// follow watches the operation until it has begun, or with --wait until it has ended.
func (o *options) follow(parent context.Context, operation *v1alpha2.VirtualMachineOperation) error {
	ctx, cancel := context.WithTimeout(parent, o.timeout)
	defer cancel()
	for {
		done, err := o.observe(ctx, operation)
		switch {
		case ctx.Err() == nil && err != nil:
			return err
		case done:
			return nil
		case parent.Err() != nil:
			return fmt.Errorf("stopped waiting; operation %s goes on: %w", operation.Name, parent.Err())
		case ctx.Err() != nil:
			return fmt.Errorf("operation %s is not done after %s; it goes on, see `d8 k -n %s get vmop %s`: %w",
				operation.Name, o.timeout, operation.Namespace, operation.Name, ctx.Err())
		}
	}
}

// observe looks at the operation and then watches it. A watch that closes, as they
// do now and then, is neither done nor an error.
func (o *options) observe(ctx context.Context, operation *v1alpha2.VirtualMachineOperation) (bool, error) {
	var now v1alpha2.VirtualMachineOperation
	if err := o.cluster.Client.Get(ctx, client.ObjectKeyFromObject(operation), &now); apierrors.IsNotFound(err) || err == nil && now.UID != operation.UID {
		return false, deleted(operation)
	} else if err != nil {
		return false, fmt.Errorf("get operation %s: %w", operation.Name, err)
	}
	if done, err := o.judge(&now); done || err != nil {
		return done, err
	}
	events, err := o.cluster.Client.Watch(ctx, &v1alpha2.VirtualMachineOperationList{}, &client.ListOptions{
		Namespace:     operation.Namespace,
		FieldSelector: fields.OneTermEqualSelector("metadata.name", operation.Name),
		Raw:           &metav1.ListOptions{ResourceVersion: now.ResourceVersion},
	})
	if err != nil {
		return false, fmt.Errorf("watch operation %s: %w", operation.Name, err)
	}
	defer events.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case event, open := <-events.ResultChan():
			if !open {
				return false, nil
			}
			if done, err := o.judgeEvent(event); done || err != nil {
				return done, err
			}
		}
	}
}

func deleted(operation *v1alpha2.VirtualMachineOperation) error {
	return fmt.Errorf("operation %s was deleted", operation.Name)
}

func (o *options) judgeEvent(event watch.Event) (bool, error) {
	operation, ok := event.Object.(*v1alpha2.VirtualMachineOperation)
	switch {
	case !ok:
		return false, fmt.Errorf("watch operation: %w", apierrors.FromObject(event.Object))
	case event.Type == watch.Deleted:
		return false, deleted(operation)
	default:
		return o.judge(operation)
	}
}

// judge tells whether there is nothing left to wait for.
func (o *options) judge(operation *v1alpha2.VirtualMachineOperation) (bool, error) {
	switch operation.Status.Phase {
	case v1alpha2.OperationCompleted:
		o.say("Operation %s completed", operation.Name)
		return true, nil
	case v1alpha2.OperationInProgress:
		if o.wait {
			return false, nil
		}
		o.say("Operation %s is in progress", operation.Name)
		return true, nil
	case v1alpha2.OperationFailed, v1alpha2.OperationSuperseded:
		return false, fmt.Errorf("operation %s: %s%s", operation.Name, operation.Status.Phase, explanation(operation))
	default:
		return false, nil
	}
}

func explanation(operation *v1alpha2.VirtualMachineOperation) string {
	completed := meta.FindStatusCondition(operation.Status.Conditions, "Completed")
	if completed == nil || completed.Message == "" {
		return ""
	}
	return ": " + completed.Message
}

func (o *options) say(format string, args ...any) { fmt.Fprintf(o.streams.Out, format+"\n", args...) }
