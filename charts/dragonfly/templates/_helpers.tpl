{{- define "dragonfly.name" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- end -}}

{{- define "dragonfly.selector" -}}
app.kubernetes.io/name: dragonfly-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Without versions: what changes with each release would replace pods for nothing. */}}
{{- define "dragonfly.labels" -}}
{{ include "dragonfly.selector" . }}
app.kubernetes.io/part-of: dragonfly
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* repository[:tag][@digest] of an image; the chart's appVersion where no tag is said. */}}
{{- define "dragonfly.image" -}}
{{- $tag := default .root.Chart.AppVersion .image.tag -}}
{{ .image.repository }}{{ if not (hasPrefix "@" $tag) }}:{{ end }}{{ $tag }}
{{- end -}}

{{/* Namespaces in which meshes run, sorted, as JSON in an object: ["*"] for all. */}}
{{- define "dragonfly.namespaces" -}}
{{- $all := default (list .Release.Namespace) .Values.namespaces -}}
{{- if has "*" $all }}{{ $all = list "*" }}{{ end -}}
{{ dict "all" ($all | uniq | sortAlpha) | toJson }}
{{- end -}}
