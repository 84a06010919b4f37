{{/* Names and labels */}}
{{- define "fusewire.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Prefix of names of objects; 40 characters, so that `-worker-remote` and a hash have room. */}}
{{- define "fusewire.fullname" -}}
{{- $name := include "fusewire.name" . }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $full | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "fusewire.selectorLabels" -}}
app.kubernetes.io/name: {{ include "fusewire.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of a Pod: none that changes with the chart, as that would replace the Pods. Takes `root`, `name` and `labels`. */}}
{{- define "fusewire.podLabels" -}}
{{ include "fusewire.selectorLabels" .root }}
app.kubernetes.io/component: {{ .name }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with .labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "fusewire.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "fusewire.selectorLabels" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The services by their keys in values.yaml; `tools` is no service. */}}
{{- define "fusewire.services" -}}
[ingest, dispatcher, judge, workerEdge, workerRemote, console]
{{- end }}

{{/*
The values of a component over `defaults`, with its `key` and `name`, as JSON. Helm's own merge
would not let `false` or 0 win.
*/}}
{{- define "fusewire.component" -}}
{{- $own := merge (dict "key" .key "name" (kebabcase .key)) (index .root.Values .key) }}
{{- include "fusewire.overlay" (dict "below" .root.Values.defaults "above" $own) }}
{{- end }}

{{- define "fusewire.overlay" -}}
{{- $result := deepCopy .below }}
{{- range $key, $value := .above }}
{{- $lower := index $result $key }}
{{- if and (kindIs "map" $value) (kindIs "map" $lower) }}
{{- $value = include "fusewire.overlay" (dict "below" $lower "above" $value) | fromJson }}
{{- end }}
{{- $_ := set $result $key $value }}
{{- end }}
{{- toJson $result }}
{{- end }}

{{- define "fusewire.serviceAccountName" -}}
{{- if .root.Values.serviceAccount.create }}
{{- printf "%s-%s" (include "fusewire.fullname" .root) .name }}
{{- else }}
{{- .root.Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* "true" where the release has a database: an edge site has none. */}}
{{- define "fusewire.hasDatabase" -}}
{{- if or .Values.ingest.enabled .Values.judge.enabled }}true{{ end }}
{{- end }}

{{/* The content of fusewire.json */}}
{{- define "fusewire.config" -}}
{{- toPrettyJson .Values.config }}
{{- end }}

{{/* The names of configured models of one kind, as a JSON list */}}
{{- define "fusewire.models" -}}
{{- $names := list }}
{{- range $name, $model := .root.Values.config.models }}
{{- if eq $model.kind $.kind }}
{{- $names = append $names $name }}
{{- end }}
{{- end }}
{{- toJson $names }}
{{- end }}

{{/* The account of NATS that has the streams */}}
{{- define "fusewire.natsAccount" -}}
{{- .Values.nats.monitoring.account | default (empty .Values.nats.nkeys.existingSecret | ternary "$G" "FW") }}
{{- end }}
