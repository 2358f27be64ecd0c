package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/util/retry"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	core "orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/api/subresources/v1alpha2"
	"orlop.dev/orlop/internal/stream"
)

const (
	// sessionLifetime is how long a record counts that nobody renews.
	sessionLifetime = 30 * time.Second
	// renewEvery is how often the holder of a stream renews its record.
	renewEvery = 10 * time.Second
	// releaseTimeout bounds taking the record back at the end.
	releaseTimeout = 5 * time.Second
	// maxClient bounds the name of the program at the user's end, in characters.
	maxClient = 128
)

// sessions records who holds a stream that one client has at a time: one Lease per
// machine and stream. The record informs (a probe, an event) and decides nothing: who
// holds the stream is settled by the node's handler, and a record that cannot be
// written never stands in the way of a connection.
//
// The newest connection owns the record. A component that died leaves one that runs
// out; a connection that finds its record taken or gone writes it anew if it is the
// newer one, since the handler would have ended it otherwise.
type sessions struct {
	client client.Client
	clock  clock.WithTicker
}

// session is one connection.
type session struct {
	stream       string
	namespace    string
	machine      string
	uid          types.UID
	id           string
	user, client string
	since        time.Time
	// tookOver tells that the handler ended another connection for this one.
	tookOver bool
}

func (s *sessions) begin(r *http.Request, where place, stream string) *session {
	mine := &session{
		stream: stream, namespace: where.namespace, machine: where.machine, uid: where.uid,
		id: string(uuid.NewUUID()), client: printable(r.UserAgent(), maxClient), since: s.clock.Now(),
	}
	if user, ok := apirequest.UserFrom(r.Context()); ok {
		mine.user = user.GetName()
	}
	return mine
}

// printable keeps what can be shown of a text, at most a number of characters.
func printable(text string, limit int) string {
	kept := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text))
	return string(kept[:min(len(kept), limit)])
}

// leaseKey names a stream's record.
func leaseKey(namespace, machine string, uid types.UID, stream string) client.ObjectKey {
	return client.ObjectKey{Namespace: namespace, Name: fmt.Sprintf("d8v-vm-%s-%s-%s", stream, machine, uid)}
}

// keep holds the record until the context, that of the connection, ends.
func (s *sessions) keep(ctx context.Context, mine *session) {
	log := klog.FromContext(ctx).WithValues("vm", klog.KRef(mine.namespace, mine.machine), "stream", mine.stream)
	if err := s.announce(ctx, mine); err != nil {
		log.Info("session is not recorded", "reason", err.Error())
	}
	tick := s.clock.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C():
			if _, err := s.claim(ctx, mine); err != nil && ctx.Err() == nil {
				log.V(1).Info("session is not renewed", "reason", err.Error())
			}
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
			defer cancel()
			if err := s.release(ctx, mine); err != nil {
				log.V(1).Info("session is not released", "reason", err.Error())
			}
			return
		}
	}
}

// announce writes the record and, after a take-over, the event. It does so for a
// connection too that has ended meanwhile: somebody was sent away for it.
func (s *sessions) announce(ctx context.Context, mine *session) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewEvery)
	defer cancel()
	former, err := s.claim(ctx, mine)
	if mine.tookOver {
		err = errors.Join(err, s.client.Create(ctx, preempted(mine, former, s.clock.Now())))
	}
	return err
}

// claim writes or renews the record, unless a newer session has it. It returns the
// user it was taken from, if one held it.
func (s *sessions) claim(ctx context.Context, mine *session) (former string, err error) {
	key := leaseKey(mine.namespace, mine.machine, mine.uid, mine.stream)
	err = retry.OnError(retry.DefaultBackoff, raced, func() error {
		var lease coordinationv1.Lease
		err := s.client.Get(ctx, key, &lease)
		if apierrors.IsNotFound(err) {
			lease := coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
			mine.write(&lease, s.clock.Now())
			return s.client.Create(ctx, &lease)
		}
		if err != nil {
			return err
		}
		if held(&lease, s.clock.Now()) && lease.Annotations[v1alpha2.SessionIDAnnotation] != mine.id {
			if lease.Spec.AcquireTime.Time.After(mine.since) {
				return nil
			}
			former = *lease.Spec.HolderIdentity
		}
		mine.write(&lease, s.clock.Now())
		return s.client.Update(ctx, &lease)
	})
	return former, err
}

// raced tells errors of two writers at a time.
func raced(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }

// release leaves a record that says nobody.
func (s *sessions) release(ctx context.Context, mine *session) error {
	return retry.OnError(retry.DefaultBackoff, raced, func() error {
		var lease coordinationv1.Lease
		err := s.client.Get(ctx, leaseKey(mine.namespace, mine.machine, mine.uid, mine.stream), &lease)
		if err != nil {
			return client.IgnoreNotFound(err)
		}
		if lease.Annotations[v1alpha2.SessionIDAnnotation] != mine.id {
			return nil
		}
		lease.Spec.HolderIdentity, lease.Spec.AcquireTime, lease.Spec.RenewTime = nil, nil, nil
		delete(lease.Annotations, v1alpha2.SessionIDAnnotation)
		delete(lease.Annotations, v1alpha2.SessionClientAnnotation)
		return client.IgnoreNotFound(s.client.Update(ctx, &lease))
	})
}

// write makes the record the session's.
func (m *session) write(lease *coordinationv1.Lease, now time.Time) {
	if lease.Labels == nil {
		lease.Labels = map[string]string{}
	}
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	lease.Labels[v1alpha2.SessionLabel] = m.stream
	lease.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: core.GroupVersion.String(), Kind: core.VirtualMachineKind, Name: m.machine, UID: m.uid,
	}}
	if lease.Annotations[v1alpha2.SessionIDAnnotation] != m.id {
		transitions := int32(1)
		if lease.Spec.LeaseTransitions != nil {
			transitions += *lease.Spec.LeaseTransitions
		}
		lease.Spec.LeaseTransitions = &transitions
	}
	lease.Annotations[v1alpha2.SessionIDAnnotation] = m.id
	lease.Annotations[v1alpha2.SessionClientAnnotation] = m.client
	lease.Spec.HolderIdentity = &m.user
	lease.Spec.LeaseDurationSeconds = new(int32(sessionLifetime / time.Second))
	lease.Spec.AcquireTime = &metav1.MicroTime{Time: m.since}
	lease.Spec.RenewTime = &metav1.MicroTime{Time: now}
}

// held tells whether somebody holds the stream, by its record.
func held(lease *coordinationv1.Lease, now time.Time) bool {
	spec := lease.Spec
	return spec.HolderIdentity != nil && spec.AcquireTime != nil && spec.RenewTime != nil &&
		now.Before(spec.RenewTime.Add(sessionLifetime))
}

// preempted is the event of a take-over.
func preempted(mine *session, former string, now time.Time) *eventsv1.Event {
	word, reason := "console", "ConsoleSessionPreempted"
	if mine.stream == "vnc" {
		word, reason = "display", "VNCSessionPreempted"
	}
	from := ""
	if former != "" {
		from = " from " + former
	}
	return &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: mine.namespace, Name: fmt.Sprintf("%s.%x", mine.machine, now.UnixNano())},
		EventTime:           metav1.MicroTime{Time: now},
		ReportingController: "virtualization-api",
		ReportingInstance:   "virtualization-api",
		Action:              "TakeOver",
		Type:                corev1.EventTypeWarning,
		Reason:              reason,
		Note:                printable(fmt.Sprintf("%s took over the %s%s", mine.user, word, from), 1000),
		Regarding: corev1.ObjectReference{
			APIVersion: core.GroupVersion.String(), Kind: core.VirtualMachineKind,
			Namespace: mine.namespace, Name: mine.machine, UID: mine.uid,
		},
	}
}

// holder reads the record of a stream.
func (s *sessions) holder(ctx context.Context, where place, stream string) (v1alpha2.StreamHolder, error) {
	var lease coordinationv1.Lease
	err := s.client.Get(ctx, leaseKey(where.namespace, where.machine, where.uid, stream), &lease)
	switch {
	case apierrors.IsNotFound(err):
		return v1alpha2.StreamHolder{}, nil
	case err != nil:
		return v1alpha2.StreamHolder{}, apierrors.NewInternalError(fmt.Errorf("get session: %w", err))
	case !held(&lease, s.clock.Now()):
		return v1alpha2.StreamHolder{}, nil
	}
	return v1alpha2.StreamHolder{
		Holder:    *lease.Spec.HolderIdentity,
		StartTime: lease.Spec.AcquireTime,
		Client:    lease.Annotations[v1alpha2.SessionClientAnnotation],
	}, nil
}

// probe answers who holds a stream.
func (s *sessions) probe(ctx context.Context, where place, stream string) (http.Handler, error) {
	holder, err := s.holder(ctx, where, stream)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(holder)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("bug: encode holder: %w", err))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	}), nil
}

// note remembers what the handler says about a stream it has opened.
func (m *session) note(response *http.Response) {
	m.tookOver = response.Header.Get(stream.TookOver) != ""
}
