{{- define "zfsilo.registry" -}}
{{ required "imageRegistry is missing: set it to the registry that the nodes pull from" .Values.imageRegistry }}
{{- end }}

{{- define "zfsilo.image" -}}
{{ include "zfsilo.registry" . }}/{{ .Values.plugin.image }}:{{ .Values.plugin.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "zfsilo.labels" -}}
app.kubernetes.io/name: zfsilo-csi
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "zfsilo.selector" -}}
app.kubernetes.io/name: zfsilo-csi
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The securityContext of every container: none needs a privilege on the host. */}}
{{- define "zfsilo.confined" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
