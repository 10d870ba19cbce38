{{- define "rankpress.selector" -}}
app.kubernetes.io/name: rankpress
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "rankpress.metadata" -}}
name: {{ .root.Release.Name }}-{{ .role }}
labels:
  {{- include "rankpress.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Full name of a role's service: nginx asks the name server itself, without search domains. */}}
{{- define "rankpress.host" -}}
{{ .root.Release.Name }}-{{ .role }}.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}
{{- end }}

{{/* What every pod has. Kubernetes' own variables for services would be taken for settings. */}}
{{- define "rankpress.pod" -}}
enableServiceLinks: false
automountServiceAccountToken: false
terminationGracePeriodSeconds: 45
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .user }}
  fsGroup: {{ .user }}
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "rankpress.hardened" -}}
imagePullPolicy: {{ .Values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Variables of a container: a dictionary, sorted by name. */}}
{{- define "rankpress.env" -}}
{{- range $name, $value := . -}}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{ end }}
{{- end }}

{{/* Resources of a container, with a GPU where the role has one. */}}
{{- define "rankpress.resources" -}}
{{- $limits := .resources.limits | default dict }}
{{- if .gpu }}
{{- $limits = merge (dict "nvidia.com/gpu" 1) $limits }}
{{- end }}
{{- toYaml (merge (dict "limits" $limits) .resources) }}
{{- end }}

{{/* Where streams and files of jobs are, for every role but nginx. */}}
{{- define "rankpress.objects" -}}
{{- $own := dict "RANKPRESS_OBJECTS_URL" .Values.objects.url "RANKPRESS_STATE" "/tmp/rankpress" }}
{{- toYaml (merge $own .Values.objects.variables .Values.variables) }}
{{- end }}

{{- define "rankpress.jobsUrl" -}}
{{- with .Values.database -}}
postgresql://{{ .user }}@{{ .host }}:{{ .port }}/{{ .name }}?sslmode={{ .sslmode }}
{{- end }}
{{- end }}

{{/* Of a server or a decoder; neither waits behind the work on images. */}}
{{- define "rankpress.probes" -}}
startupProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 2
  timeoutSeconds: 4
  failureThreshold: 90
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}
