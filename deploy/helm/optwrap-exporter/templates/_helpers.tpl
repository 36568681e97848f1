{{/* The name of all objects: that of the release, as only one exporter of a release makes sense. */}}
{{- define "optwrap-exporter.name" -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "optwrap-exporter.selector" -}}
app.kubernetes.io/name: optwrap-exporter
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "optwrap-exporter.labels" -}}
{{ include "optwrap-exporter.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "optwrap-exporter.secret" -}}
{{ .Values.token.existingSecret | default "optwrap-token" }}
{{- end }}
