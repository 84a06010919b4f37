{{/*
Parts that all Pods share. Each takes `root`, and `component` as `fusewire.component` gives it. Pods
of the tools' image that are not the tools have a `role`: `prepare` or `test`.
*/}}

{{- define "fusewire.image" -}}
{{- $image := .component.image }}
{{- $repository := $image.repository | default (printf "fusewire-%s" .component.name) }}
{{- if and .root.Values.image.registry (not $image.repository) }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .root.Values.image.registry) $repository }}
{{- end }}
{{- if $image.digest }}
{{- printf "%s@%s" $repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $repository ($image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end }}
{{- end }}

{{/* Fields of a Pod's spec, but for containers, volumes and what is particular to a service */}}
{{- define "fusewire.podFields" -}}
serviceAccountName: {{ include "fusewire.serviceAccountName" (dict "root" .root "name" (.role | default .component.name)) }}
automountServiceAccountToken: false
{{- /* Variables for each Service of the namespace would begin with FUSEWIRE_, as those of the settings. */}}
enableServiceLinks: false
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .component.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Fields that every container has */}}
{{- define "fusewire.container" -}}
image: {{ include "fusewire.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- toYaml .root.Values.securityContext | nindent 2 }}
{{- with .component.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Those, and what a process of Fusewire reads: settings, secrets and files */}}
{{- define "fusewire.process" -}}
{{ include "fusewire.container" . }}
env:
  {{- include "fusewire.env" . | trim | nindent 2 }}
  {{- with .component.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $sources := .component.extraEnvFrom }}
{{- if eq .component.key "workerRemote" }}
{{- with .component.providerKeys.existingSecret }}
{{- $sources = prepend $sources (dict "secretRef" (dict "name" .)) }}
{{- end }}
{{- end }}
{{- with $sources }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- include "fusewire.mounts" . | trim | nindent 2 }}
{{- end }}

{{- define "fusewire.fileEnv" }}
- name: FUSEWIRE_CONFIG
  value: /etc/fusewire/fusewire.json
- name: FUSEWIRE_DATA_DIR
  value: /tmp/fusewire
{{- end }}

{{- define "fusewire.env" -}}
{{- $values := .root.Values }}
{{- $component := .component }}
{{- include "fusewire.fileEnv" . }}
{{- if ne $component.key "console" }}
- name: FUSEWIRE_NATS__URL
  value: {{ $values.nats.url | quote }}
{{- if $values.nats.site }}
- name: FUSEWIRE_NATS__SITE
  value: {{ $values.nats.site | quote }}
{{- end }}
{{- if $values.nats.nkeys.existingSecret }}
- name: FUSEWIRE_NATS__NKEY
  value: /etc/fusewire/nats/nkey.seed
{{- if hasPrefix "worker" $component.key }}
- name: FUSEWIRE_NATS__JS_PREFIX
  value: {{ $values.nats.workerPrefix | quote }}
{{- end }}
{{- end }}
{{- if $values.nats.tls.existingSecret }}
- name: FUSEWIRE_NATS__TLS_CA
  value: /etc/fusewire/nats-tls/ca.crt
{{- end }}
{{- end }}
{{- if and (has $component.key (list "ingest" "judge" "tools")) (include "fusewire.hasDatabase" .root) }}
- name: FUSEWIRE_DATABASE__URL
  valueFrom:
    secretKeyRef:
      name: {{ $values.database.existingSecret }}
      key: url
{{- end }}
{{- if eq $component.key "console" }}
- name: FUSEWIRE_CONSOLE__API_URL
  value: {{ empty $values.ingest.tls.existingSecret | ternary "http" "https" }}://{{ include "fusewire.fullname" .root }}-ingest:{{ $values.ingest.service.port }}
- name: FUSEWIRE_DATABASE__URL
  valueFrom:
    secretKeyRef:
      name: {{ $component.database.existingSecret | default $values.database.existingSecret }}
      key: url
{{- with $component.database.existingSecret }}
- name: FUSEWIRE_DATABASE__ANALYST_URL
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: url
{{- end }}
{{- end }}
{{- if or (eq $component.key "ingest") (and (eq $component.key "tools") $values.ingest.enabled (not .role)) }}
- name: FUSEWIRE_KEY_PEPPER
  valueFrom:
    secretKeyRef:
      name: {{ $values.ingest.pepper.existingSecret }}
      key: pepper
{{- end }}
{{- if ne $component.key "tools" }}
- name: FUSEWIRE_HTTP__HOST
  value: {{ dig "http" "host" "0.0.0.0" $values.config | quote }}
- name: FUSEWIRE_HTTP__OPERATIONS_PORT
  value: "8485"
{{- end }}
{{- if and (eq $component.key "workerEdge") $values.networkPolicy.enabled }}
# It reaches NATS alone, so it sends no traces.
- name: FUSEWIRE_TELEMETRY__OTLP_ENDPOINT
  value: ""
{{- end }}
{{- if has $component.key (list "ingest" "console") }}
- name: FUSEWIRE_HTTP__PORT
  value: "8484"
{{- /* The console has ingest's certificate, by which it also knows the API. */}}
{{- if $values.ingest.tls.existingSecret }}
- name: FUSEWIRE_HTTP__TLS_CERT
  value: /etc/fusewire/tls/tls.crt
- name: FUSEWIRE_HTTP__TLS_KEY
  value: /etc/fusewire/tls/tls.key
{{- else }}
- name: FUSEWIRE_HTTP__ALLOW_INSECURE
  value: "true"
{{- end }}
{{- end }}
{{- end }}

{{- define "fusewire.fileMounts" }}
- name: config
  mountPath: /etc/fusewire/fusewire.json
  subPath: fusewire.json
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- end }}

{{- define "fusewire.mounts" -}}
{{- include "fusewire.fileMounts" . }}
{{- if and .root.Values.nats.nkeys.existingSecret (ne .component.key "console") }}
- name: nkey
  mountPath: /etc/fusewire/nats
  readOnly: true
{{- end }}
{{- if and .root.Values.nats.tls.existingSecret (ne .component.key "console") }}
- name: nats-ca
  mountPath: /etc/fusewire/nats-tls
  readOnly: true
{{- end }}
{{- if and .root.Values.ingest.tls.existingSecret (has .component.key (list "ingest" "console")) }}
- name: tls
  mountPath: /etc/fusewire/tls
  readOnly: true
{{- end }}
{{- if eq .component.key "workerEdge" }}
{{ include "fusewire.weightMounts" . | trim }}
{{- end }}
{{- with .component.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "fusewire.volumes" -}}
{{- $values := .root.Values }}
- name: config
  configMap:
    name: {{ include "fusewire.fullname" .root }}{{ eq .role "prepare" | ternary "-prepare" "" }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .component.tmpSizeLimit }}
{{- if ne .component.key "console" }}
{{- with $values.nats.nkeys.existingSecret }}
- name: nkey
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: {{ eq $.component.key "tools" | ternary "ops" $.component.name }}.seed
        path: nkey.seed
{{- end }}
{{- with $values.nats.tls.existingSecret }}
- name: nats-ca
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- end }}
{{- if has .component.key (list "ingest" "console") }}
{{- with $values.ingest.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- if eq .component.key "workerEdge" }}
{{ include "fusewire.weightVolumes" . | trim }}
{{- end }}
{{- with .component.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Time for a service to drain, and 10 s more: as long as a process may take to end at most. */}}
{{- define "fusewire.graceSeconds" -}}
{{- $limits := .root.Values.config.limits | default dict }}
{{- $drain := $limits.drain_s | default 10 }}
{{- if eq .component.key "workerRemote" }}
{{- $drain = maxf $drain ($limits.call_drain_s | default 120) }}
{{- end }}
{{- add (ceil $drain) 10 (.component.preStopSeconds | default 0) }}
{{- end }}

{{/* Spread of the replicas of one service */}}
{{- define "fusewire.spread" -}}
{{- $labels := dict "app.kubernetes.io/name" (include "fusewire.name" .root) "app.kubernetes.io/instance" .root.Release.Name "app.kubernetes.io/component" .component.name }}
{{- $constraints := list }}
{{- range $constraint := .component.topologySpreadConstraints }}
{{- if not (hasKey $constraint "labelSelector") }}
{{- $constraint = merge (dict "labelSelector" (dict "matchLabels" $labels)) $constraint }}
{{- end }}
{{- $constraints = append $constraints $constraint }}
{{- end }}
{{- toYaml $constraints }}
{{- end }}
