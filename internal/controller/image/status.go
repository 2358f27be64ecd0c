package image

import (
	"fmt"
	"slices"
	"strconv"

	"orlop.dev/orlop/api/core/v1alpha2"
	"orlop.dev/orlop/internal/attempt"
	"orlop.dev/orlop/internal/importer"
	"orlop.dev/orlop/internal/steps"
)

// show computes the status after a pass; it is the only writer of it.
func show(w *world, d steps.Decision, errs steps.Errors) status {
	s := w.image.status
	s.Conditions = steps.Conditions(s.Conditions, d, errs, w.image.GetGeneration(), w.now)
	s.ObservedGeneration = w.image.GetGeneration()
	s.UsedInNamespaces = namespaces(w.holders)
	next := w.next()
	s.Phase = phase(w, d, next)
	s.DownloadSpeed = nil
	if next.Move == attempt.Finished && w.unsupported() == "" {
		result := *next.Record.Result
		s.Progress = "100%"
		s.CDROM = result.CDROM
		s.Format = result.SourceFormat
		s.Size = sizes(result)
		s.RegistryURL = w.host + "/" + w.repository() + "@" + result.Digest
		if result.AverageSpeedBytes > 0 {
			s.DownloadSpeed = &v1alpha2.StatusSpeed{Avg: human(result.AverageSpeedBytes) + "/s", AvgBytes: strconv.FormatInt(result.AverageSpeedBytes, 10)}
		}
		return s
	}
	s.CDROM, s.Format, s.Size, s.RegistryURL = false, "", v1alpha2.ImageStatusSize{}, ""
	s.Progress = progress(w, next, s)
	if next.Move == attempt.Watch && w.progress != nil {
		s.DownloadSpeed = speed(*w.progress)
	}
	return s
}

func phase(w *world, d steps.Decision, next attempt.Step) v1alpha2.ImagePhase {
	switch {
	case w.deleting():
		return v1alpha2.ImageTerminating
	case w.unsupported() != "":
		return v1alpha2.ImageFailed
	case next.Move == attempt.Finished:
		return v1alpha2.ImageReady
	case d.Outcome(v1alpha2.ImageConditionReady).State == steps.FailedState:
		return v1alpha2.ImageFailed
	}
	return v1alpha2.ImageProvisioning
}

// progress of an image that is not ready: at least "0%" once the import is wanted.
func progress(w *world, next attempt.Step, before status) string {
	if w.unsupported() != "" {
		return ""
	}
	if next.Move == attempt.Watch && next.Verdict.State == attempt.Running {
		switch {
		case w.progress != nil && w.progress.Percent >= 0:
			return fmt.Sprintf("%d%%", int(min(w.progress.Percent, 100)))
		case before.Progress != "":
			return before.Progress
		}
	}
	return "0%"
}

func speed(p importer.Progress) *v1alpha2.StatusSpeed {
	return &v1alpha2.StatusSpeed{
		Avg: human(p.AverageSpeedBytes) + "/s", AvgBytes: strconv.FormatInt(p.AverageSpeedBytes, 10),
		Current: human(p.SpeedBytes) + "/s", CurrentBytes: strconv.FormatInt(p.SpeedBytes, 10),
	}
}

func sizes(r importer.Result) v1alpha2.ImageStatusSize {
	return v1alpha2.ImageStatusSize{
		Stored: human(r.StoredSize), StoredBytes: strconv.FormatInt(r.StoredSize, 10),
		Unpacked: human(r.VirtualSize), UnpackedBytes: strconv.FormatInt(r.VirtualSize, 10),
	}
}

// human writes bytes as "285.9Mi", one digit after the point where it says something.
func human(bytes int64) string {
	value, unit := float64(bytes), ""
	for _, u := range []string{"Ki", "Mi", "Gi", "Ti", "Pi"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, u
	}
	return strconv.FormatFloat(float64(int64(value*10+0.5))/10, 'f', -1, 64) + unit
}

func namespaces(all []holder) []string {
	var names []string
	for _, h := range all {
		names = append(names, h.Namespace)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
