{{- define "heed.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* With the 12 characters that follow it in the name of a pod, Kubernetes cuts nothing off: scaledobject.yaml counts on it. */ -}}
{{- define "heed.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" }}
{{- else if contains (include "heed.name" .) .Release.Name }}
{{- .Release.Name | trunc 46 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "heed.name" .) | trunc 46 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "heed.selectorLabels" -}}
app.kubernetes.io/name: {{ include "heed.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "heed.labels" -}}
{{ include "heed.selectorLabels" . }}
app.kubernetes.io/component: serving-engine
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "heed.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "heed.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* Whether there are files of ours to mount. */ -}}
{{- define "heed.hasConfig" -}}
{{- if or .Values.interventions.policy .Values.interventions.defaults }}yes{{ end }}
{{- end }}

{{- define "heed.config" -}}
{{- with .Values.interventions.policy }}
policy.json: {{ toJson . | quote }}
{{- end }}
{{- with .Values.interventions.defaults }}
defaults.json: {{ toJson . | quote }}
{{- end }}
{{- end }}
