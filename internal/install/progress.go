package install

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"orlop.dev/orlop/internal/settings"
)

// Pace of waiting: how often the cluster is asked, and how often the person in front
// of the terminal is told what is waited for.
const (
	askEvery  = 250 * time.Millisecond
	tellEvery = 10 * time.Second
)

// progress tells what happens, in whole lines, so that it is as good in a log.
type progress struct {
	out   io.Writer
	clock clock.Clock
}

// step announces something; the returned function says how it ended.
func (p progress) step(what string) func(format string, args ...any) {
	start := p.clock.Now()
	return func(format string, args ...any) {
		fmt.Fprintf(p.out, "✓ %s: %s (%.1f s)\n", what, fmt.Sprintf(format, args...), p.clock.Since(start).Seconds())
	}
}

func (p progress) note(format string, args ...any) { fmt.Fprintf(p.out, format+"\n", args...) }

// wait asks until nothing is waited for any more. The function returns what is still
// missing, or an error that waiting cannot mend.
func (p progress) wait(ctx context.Context, what string, missing func() (string, error)) error {
	start := p.clock.Now()
	told := start
	for {
		reason, err := missing()
		if err == nil && reason == "" {
			fmt.Fprintf(p.out, "✓ %s: ready (%.1f s)\n", what, p.clock.Since(start).Seconds())
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		if p.clock.Since(told) >= tellEvery {
			told = p.clock.Now()
			fmt.Fprintf(p.out, "• %s: waiting for %s\n", what, reason)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not ready after %s, still waiting for %s", what, p.clock.Since(start).Round(time.Second), reason)
		case <-p.clock.After(askEvery):
		}
	}
}

// describe says what keeps components from being ready, in the words of their pods.
func (i *installer) describe(ctx context.Context, names []string) string {
	var list []string
	for _, name := range names {
		list = append(list, name+i.podTrouble(ctx, name))
	}
	return strings.Join(list, ", ")
}

// podTrouble is the first complaint of a component's pods, in parentheses.
func (i *installer) podTrouble(ctx context.Context, app string) string {
	var pods corev1.PodList
	if i.client.List(ctx, &pods, client.InNamespace(settings.Namespace), client.MatchingLabels{"app": app}) != nil {
		return ""
	}
	for _, pod := range pods.Items {
		for _, container := range pod.Status.ContainerStatuses {
			if waiting := container.State.Waiting; waiting != nil && waiting.Reason != "ContainerCreating" {
				message := waiting.Reason
				if last := container.LastTerminationState.Terminated; last != nil {
					message += fmt.Sprintf(", it ended with code %d %s", last.ExitCode, lastLine(last.Message))
				}
				return " (" + strings.TrimSpace(message) + ")"
			}
		}
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
				return " (" + condition.Message + ")"
			}
		}
		if pod.Status.Phase == corev1.PodPending {
			if trouble := i.lastWarning(ctx, pod.Name); trouble != "" {
				return " (" + trouble + ")"
			}
		}
	}
	return ""
}

// lastWarning is the newest warning about a pod that could not start its containers.
func (i *installer) lastWarning(ctx context.Context, pod string) string {
	var events corev1.EventList
	if i.client.List(ctx, &events, client.InNamespace(settings.Namespace)) != nil {
		return ""
	}
	var newest corev1.Event
	for _, event := range events.Items {
		if event.InvolvedObject.Name == pod && event.Type == corev1.EventTypeWarning && event.LastTimestamp.After(newest.LastTimestamp.Time) {
			newest = event
		}
	}
	return lastLine(newest.Message)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
