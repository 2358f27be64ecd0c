package power

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

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

func (o *options) run(ctx context.Context) error {
	createOnly := o.createOnly || len(o.targets) > 1
	answers := bufio.NewReader(o.streams.In)
	for _, target := range o.targets {
		if !o.yes && !o.confirm(answers, target) {
			continue
		}
		operation, err := o.create(ctx, target)
		if err != nil {
			return err
		}
		o.say("Operation %s created", operation.Name)
		if createOnly {
			continue
		}
		if err := o.follow(ctx, operation); err != nil {
			return err
		}
	}
	return nil
}

// confirm asks once; no answer is a no.
func (o *options) confirm(answers *bufio.Reader, target access.Target) bool {
	fmt.Fprintf(o.streams.Out, "%s virtual machine %s in namespace %s? [y/N] ", o.verb.question, target.Name, target.Namespace)
	answer, _ := answers.ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes"
}

func (o *options) create(ctx context.Context, target access.Target) (*v1alpha2.VirtualMachineOperation, error) {
	operation := &v1alpha2.VirtualMachineOperation{
		ObjectMeta: metav1.ObjectMeta{Namespace: target.Namespace, GenerateName: target.Name + "-"},
		Spec: v1alpha2.VirtualMachineOperationSpec{
			Type:               o.verb.kind,
			VirtualMachineName: target.Name,
			Force:              o.force,
		},
	}
	if err := o.cluster.Client.Create(ctx, operation); err != nil {
		return nil, fmt.Errorf("%s %s: %w", o.verb.name, target.Name, err)
	}
	return operation, nil
}

// follow watches the operation until it has begun, or with --wait until it has ended.
func (o *options) follow(ctx context.Context, operation *v1alpha2.VirtualMachineOperation) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	for {
		events, err := o.cluster.Client.Watch(ctx, &v1alpha2.VirtualMachineOperationList{}, client.InNamespace(operation.Namespace),
			client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("metadata.name", operation.Name)})
		if err != nil {
			return fmt.Errorf("watch operation %s: %w", operation.Name, err)
		}
		done, err := o.judgeAll(ctx, events)
		events.Stop()
		if done || err != nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("operation %s is not done after %s; it goes on, see `d8 k -n %s get vmop %s`: %w",
				operation.Name, o.timeout, operation.Namespace, operation.Name, ctx.Err())
		}
	}
}

// judgeAll reads events until the operation is done or the watch closes.
func (o *options) judgeAll(ctx context.Context, events watch.Interface) (bool, error) {
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case event, open := <-events.ResultChan():
			if !open {
				return false, nil
			}
			operation, ok := event.Object.(*v1alpha2.VirtualMachineOperation)
			if !ok {
				return false, nil
			}
			if event.Type == watch.Deleted {
				return true, fmt.Errorf("operation %s was deleted", operation.Name)
			}
			if done, err := o.judge(operation); done || err != nil {
				return done, err
			}
		}
	}
}

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
		return true, fmt.Errorf("operation %s: %s%s", operation.Name, operation.Status.Phase, explanation(operation))
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
