{{/* What the schema cannot say. Each message says what, and how to mend it. */}}

{{- define "fusewire.validate" -}}
{{- range $key := include "fusewire.services" . | fromYamlArray }}
{{- $component := include "fusewire.component" (dict "root" $ "key" $key) | fromJson }}
{{- if $component.enabled }}
{{- include "fusewire.validateScaling" (dict "root" $ "component" $component) }}
{{- end }}
{{- end }}
{{- if .Values.workerEdge.enabled }}
{{- include "fusewire.validateWeights" . }}
{{- end }}
{{- if .Values.workerRemote.enabled }}
{{- if eq "[]" (include "fusewire.models" (dict "root" . "kind" "remote")) }}
{{- fail "workerRemote is enabled, and config.models has no hosted model: add one with kind: remote, or set workerRemote.enabled=false" }}
{{- end }}
{{- end }}
{{- if and .Values.monitoring.podMonitor.enabled .Values.monitoring.serviceMonitor.enabled }}
{{- fail "monitoring has both podMonitor and serviceMonitor enabled, and everything would be counted twice: disable one of them" }}
{{- end }}
{{- range $key := list "ingest" "console" }}
{{- $own := index $.Values $key }}
{{- if and $own.enabled $own.ingress.enabled (not $own.ingress.hosts) }}
{{- fail (printf "%s.ingress is enabled and has no hosts: name one in %s.ingress.hosts" $key $key) }}
{{- end }}
{{- if and $own.enabled $own.httpRoute.enabled (not $own.httpRoute.parentRefs) }}
{{- fail (printf "%s.httpRoute is enabled and belongs to no Gateway: name one in %s.httpRoute.parentRefs" $key $key) }}
{{- end }}
{{- end }}
{{- if and .Values.console.enabled (not .Values.ingest.enabled) }}
{{- fail "console is enabled and ingest is not, whose API it asks: set console.enabled=false here, and enable it where ingest runs" }}
{{- end }}
{{- end }}

{{- define "fusewire.validateScaling" -}}
{{- $prepare := .root.Values.prepare }}
{{- $scaling := .component.autoscaling }}
{{- if and $scaling.keda.enabled $scaling.hpa.enabled }}
{{- fail (printf "%s.autoscaling has both keda and hpa enabled, and they would work against each other: disable one of them" .component.key) }}
{{- end }}
{{- if and $scaling.keda.enabled (eq 0 (int $scaling.keda.minReplicas)) (has .component.key (list "ingest" "judge")) }}
{{- fail (printf "%s.autoscaling.keda.minReplicas is 0, and it has work without messages too: set 1 or more" .component.key) }}
{{- end }}
{{- if and $scaling.keda.enabled (eq .component.key "console") (not $scaling.keda.extraTriggers) }}
{{- fail "console.autoscaling.keda is enabled, and it takes no messages that could lag: set console.autoscaling.keda.enabled=false and use hpa, or name extraTriggers" }}
{{- end }}
{{- if and $scaling.keda.enabled $prepare.enabled (not (or $prepare.hooks.helm $prepare.hooks.argocd)) }}
{{- fail (printf "%s.autoscaling.keda is enabled and prepare has no hook: KEDA scales to the most replicas while consumers are missing, so they must be there before. Enable prepare.hooks.helm or prepare.hooks.argocd, or provision NATS yourself and set prepare.enabled=false" .component.key) }}
{{- end }}
{{- end }}

{{- define "fusewire.validateWeights" -}}
{{- $weights := .Values.workerEdge.weights }}
{{- $models := include "fusewire.models" (dict "root" . "kind" "edge") | fromJsonArray }}
{{- if not $models }}
{{- fail "workerEdge is enabled, and config.models has no edge model: add one with kind: edge, or set workerEdge.enabled=false" }}
{{- end }}
{{- if ne 1 (len (compact (list $weights.existingClaim $weights.hostPath (ternary "images" "" (gt (len $weights.images) 0))))) }}
{{- fail "workerEdge.weights needs one of existingClaim, hostPath and images, and only one" }}
{{- end }}
{{- if and $weights.images (semverCompare "<1.31.0-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "workerEdge.weights.images needs image volumes, which Kubernetes has from 1.31; this is %s: use existingClaim" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- range $name := $models }}
{{- $path := (index $.Values.config.models $name).path }}
{{- if not (hasPrefix "/models/" $path) }}
{{- fail (printf "config.models.%s.path is %s, and weights are mounted below /models: write /models/%s" $name $path $name) }}
{{- end }}
{{- if and $weights.images (not (hasKey $weights.images (trimPrefix "/models/" $path))) }}
{{- fail (printf "config.models.%s.path is %s, and workerEdge.weights.images has no %s: add it" $name $path (trimPrefix "/models/" $path)) }}
{{- end }}
{{- end }}
{{- range $name, $_ := $weights.manifestSha256 }}
{{- if not (has $name $models) }}
{{- fail (printf "workerEdge.weights.manifestSha256 names %s, which is no edge model of config.models: mend the name, or remove it" $name) }}
{{- end }}
{{- end }}
{{- end }}
