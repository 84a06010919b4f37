{{/* Weights of worker-edge: volumes, mounts, and the check of their hashes. */}}

{{- define "fusewire.weightVolumes" -}}
{{- $weights := .component.weights }}
{{- if $weights.existingClaim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ $weights.existingClaim }}
    readOnly: true
{{- else if $weights.hostPath }}
- name: models
  hostPath:
    path: {{ $weights.hostPath }}
    type: Directory
{{- else }}
{{- range $name, $image := $weights.images }}
- name: model-{{ $name | replace "_" "-" }}
  image:
    reference: {{ $image.reference }}
    pullPolicy: {{ $image.pullPolicy | default "IfNotPresent" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "fusewire.weightMounts" -}}
{{- range $name, $_ := .component.weights.images }}
- name: model-{{ $name | replace "_" "-" }}
  mountPath: /models/{{ $name }}
  readOnly: true
{{- else }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- end }}

{{/* Arguments of the check: each model's folder, with the hash of its manifest if that is given. */}}
{{- define "fusewire.weightFolders" -}}
{{- range $name := include "fusewire.models" (dict "root" .root "kind" "edge") | fromJsonArray }}
{{- $model := index $.root.Values.config.models $name }}
{{- $sha256 := index $.component.weights.manifestSha256 $name }}
- {{ empty $sha256 | ternary $model.path (printf "%s=%s" $model.path $sha256) | quote }}
{{- end }}
{{- end }}
