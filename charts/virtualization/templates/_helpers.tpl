{{- define "labels" -}}
heritage: deckhouse
module: virtualization
{{- end -}}

{{- /* image of a component: include "component.image" (list $ "name") */ -}}
{{- define "component.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.images.registry }}/{{ index . 1 }}:{{ required "images.version is required" $root.Values.images.version }}
{{- end -}}

{{- /* what components that log through zap are told; they know no level between info and error */ -}}
{{- define "log.args" -}}
- --zap-log-level={{ if eq .Values.logLevel "warn" }}error{{ else }}{{ .Values.logLevel }}{{ end }}
- --zap-encoder={{ if eq .Values.logFormat "json" }}json{{ else }}console{{ end }}
{{- end -}}

{{- define "pull" -}}
imagePullPolicy: IfNotPresent
{{- end -}}

{{- define "pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* an ordinary component: no root, no capabilities, nothing writable */ -}}
{{- define "unprivileged.pod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "unprivileged.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- /* prefer control plane nodes, go elsewhere if there are none */ -}}
{{- define "placement.master" -}}
affinity:
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      preference:
        matchExpressions:
        - key: node-role.kubernetes.io/control-plane
          operator: Exists
{{- if gt (int .Values.replicas) 1 }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            app: {{ .app }}
{{- end }}
tolerations:
- key: node-role.kubernetes.io/control-plane
  operator: Exists
- key: dedicated.deckhouse.io
  operator: Exists
- key: CriticalAddonsOnly
  operator: Exists
{{- end -}}

{{- /* prefer system nodes, then any worker */ -}}
{{- define "placement.system" -}}
affinity:
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      preference:
        matchExpressions:
        - key: node-role.deckhouse.io/system
          operator: Exists
    - weight: 10
      preference:
        matchExpressions:
        - key: node-role.kubernetes.io/control-plane
          operator: DoesNotExist
tolerations:
- key: dedicated.deckhouse.io
  operator: Equal
  value: system
- key: node-role.kubernetes.io/control-plane
  operator: Exists
{{- end -}}

{{- /* the account a role is bound to: include "subject" (list $ "name") */ -}}
{{- define "subject" -}}
subjects:
- kind: ServiceAccount
  name: {{ index . 1 }}
  namespace: {{ (index . 0).Release.Namespace }}
{{- end -}}

{{- define "webhook.common" }}
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  matchPolicy: Equivalent
  timeoutSeconds: 10
{{- end -}}
