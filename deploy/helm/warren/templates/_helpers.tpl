{{/* Labels of every object; the argument is {root, name}. */}}
{{- define "warren.labels" -}}
app: {{ .name }}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: warren
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{/* Labels of a pod: Warren's own pods are never captured. */}}
{{- define "warren.podLabels" -}}
app: {{ .name }}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: warren
istio.io/dataplane-mode: none
{{- end }}

{{/* Annotations of a pod; the argument is {root, values, port}. */}}
{{- define "warren.podAnnotations" -}}
{{- if .root.Values.prometheusAnnotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- with .values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "warren.image" -}}
image: {{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "warren.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "warren.logEnv" -}}
- name: RUST_LOG
  value: {{ .Values.logLevel | quote }}
- name: LOG_FORMAT
  value: {{ .Values.logFormat }}
{{- end }}

{{/* What the agent may do, and the purge at uninstall that undoes it. */}}
{{- define "warren.agentSecurityContext" -}}
runAsUser: 0
runAsGroup: 0
readOnlyRootFilesystem: true
# The API demands it of whoever has SYS_ADMIN.
allowPrivilegeEscalation: true
capabilities:
  drop: [ALL]
  add:
    - NET_ADMIN # nf_tables, routes and rules in the pods' network namespaces; the kubelet's probe rules on the node
    - SYS_ADMIN # setns(2) into those namespaces
    - SYS_PTRACE # /proc/PID/ns/net of pods that already run, whatever user they run as
    - DAC_OVERRIDE # CNI directories belong to other users on some distributions
seccompProfile:
  type: RuntimeDefault
# The runtime's default profile forbids looking into the namespaces of processes under another profile.
appArmorProfile:
  type: Unconfined
{{- with .Values.agent.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The agent's view of the node, for the agent and for the purge. */}}
{{- define "warren.agentMounts" -}}
- name: host-proc
  mountPath: /host/proc
  readOnly: true
- name: cni-conf
  mountPath: /host/etc/cni/net.d
- name: cni-bin
  mountPath: /host/opt/cni/bin
- name: zds
  mountPath: /var/run/ztunnel
- name: run
  mountPath: /var/run/warren
{{- end }}

{{- define "warren.agentVolumes" -}}
- name: host-proc
  hostPath: {path: /proc, type: Directory}
- name: cni-conf
  hostPath: {path: {{ .Values.agent.cniConfDir }}, type: DirectoryOrCreate}
- name: cni-bin
  hostPath: {path: {{ .Values.agent.cniBinDir }}, type: DirectoryOrCreate}
- name: zds
  hostPath: {path: /var/run/ztunnel, type: DirectoryOrCreate}
- name: run
  hostPath: {path: /var/run/warren, type: DirectoryOrCreate}
{{- end }}

{{- define "warren.nodeFlags" -}}
- --host-proc=/host/proc
- --cni-conf-dir=/host/etc/cni/net.d
- --cni-bin-dir=/host/opt/cni/bin
{{- end }}
