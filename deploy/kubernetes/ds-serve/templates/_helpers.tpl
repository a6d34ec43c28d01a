{{- define "ds.name" -}}
{{ default .Release.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "ds.selector" -}}
app.kubernetes.io/name: ds-serve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ds.labels" -}}
{{ include "ds.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The pods that answer requests: of several nodes only the leaders. */ -}}
{{- define "ds.servers" -}}
{{ include "ds.selector" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "ds.image" -}}
{{- $image := .Values.image -}}
{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default (printf "%s-%s" .Chart.AppVersion $image.variant) $image.tag }}{{ end }}
{{- end }}

{{- define "ds.account" -}}
{{ default (include "ds.name" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "ds.keysSecret" -}}
{{ .Values.apiKeys.secret | default (printf "%s-keys" (include "ds.name" .)) }}
{{- end }}

{{- define "ds.hasKeys" -}}
{{ if or .Values.apiKeys.secret .Values.apiKeys.content }}yes{{ end }}
{{- end }}

{{- /* Numbers of values are floats to Helm, and large ones would be written as 1e+09. */ -}}
{{- define "ds.word" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- /* The seconds that a pod has for its end. */ -}}
{{- define "ds.grace" -}}
{{- $drain := index .Values.flags "drain-timeout" | default 30 -}}
{{ add .Values.drain.preStopSeconds (ceil $drain | int64) .Values.drain.marginSeconds }}
{{- end }}

{{- /* What the clouds give a pod of a spot node; docs/kubernetes.md names the sources. */ -}}
{{- define "ds.notice" -}}
{{ get (dict "eks" 120 "karpenter" 120 "gke" 15 "aks" 30) .Values.spot.cloud }}
{{- end }}

{{- define "ds.spotSelector" -}}
{{- $labels := dict
  "eks" (dict "eks.amazonaws.com/capacityType" "SPOT")
  "karpenter" (dict "karpenter.sh/capacity-type" "spot")
  "gke" (dict "cloud.google.com/gke-spot" "true")
  "aks" (dict "kubernetes.azure.com/scalesetpriority" "spot") -}}
{{ toYaml (merge (dict) .Values.nodeSelector (get $labels .Values.spot.cloud | default dict)) }}
{{- end }}

{{- define "ds.args" -}}
- --host=0.0.0.0
- --http-port={{ .Values.ports.http }}
- --grpc-port={{ .Values.ports.grpc }}
- --metrics-port={{ .Values.ports.metrics }}
{{- if include "ds.hasKeys" . }}
- --api-keys=/keys/keys.toml
{{- end }}
{{- if .Values.tls.secret }}
- --tls-certificate=/tls/tls.crt
- --tls-key=/tls/tls.key
{{- end }}
{{- range .Values.models }}
- {{ printf "--model=%s" . | quote }}
{{- end }}
{{- range $flag, $value := .Values.flags }}
{{- range (kindIs "slice" $value | ternary $value (list $value)) }}
- {{ printf "--%s=%s" $flag (include "ds.word" .) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "ds.pullArgs" -}}
{{- range .Values.pull.include }}
- {{ printf "--include=%s" . | quote }}
{{- end }}
{{- range .Values.pull.exclude }}
- {{ printf "--exclude=%s" . | quote }}
{{- end }}
{{- end }}

{{- define "ds.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "ds.env" -}}
- name: HOME
  value: /cache
- name: DS_SERVE_CACHE
  value: /cache/ds-serve
{{- if .Values.pull.dockerConfig }}
- name: DOCKER_CONFIG
  value: /pull
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "ds.probe" -}}
httpGet:
  path: {{ .path }}
  port: http
  scheme: {{ empty .root.Values.tls.secret | ternary "HTTP" "HTTPS" }}
{{- end }}

{{- define "ds.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
- {name: cache, mountPath: /cache}
{{- if .Values.modelVolume.claim }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- if .Values.files }}
- {name: config, mountPath: /config, readOnly: true}
{{- end }}
{{- if .Values.pull.dockerConfig }}
- {name: pull, mountPath: /pull, readOnly: true}
{{- end }}
{{- end }}

{{- define "ds.secretMounts" -}}
{{- if include "ds.hasKeys" . }}
- {name: keys, mountPath: /keys, readOnly: true}
{{- end }}
{{- if .Values.tls.secret }}
- {name: tls, mountPath: /tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "ds.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmpSize }}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}
- name: cache
{{- if .Values.cache.claim }}
  persistentVolumeClaim: {claimName: {{ .Values.cache.claim }}}
{{- else }}
  emptyDir: {sizeLimit: {{ .Values.cache.size }}}
{{- end }}
{{- with .Values.modelVolume.claim }}
- name: models
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- if .Values.files }}
- name: config
  configMap: {name: {{ include "ds.name" . }}}
{{- end }}
{{- with .Values.pull.dockerConfig }}
- name: pull
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items: [{key: .dockerconfigjson, path: config.json}]
{{- end }}
{{- end }}

{{- define "ds.secretVolumes" -}}
{{- if include "ds.hasKeys" . }}
- name: keys
  secret: {secretName: {{ include "ds.keysSecret" . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.tls.secret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- /* What every pod has in common, whatever runs in it. */ -}}
{{- define "ds.pod" -}}
serviceAccountName: {{ include "ds.account" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext: {{ toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if or .Values.nodeSelector .Values.spot.cloud }}
nodeSelector: {{ include "ds.spotSelector" . | nindent 2 }}
{{- end }}
{{- if or .Values.tolerations (eq .Values.spot.cloud "aks") }}
tolerations:
{{- with .Values.tolerations }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- if eq .Values.spot.cloud "aks" }}
  - {key: kubernetes.azure.com/scalesetpriority, value: spot, effect: NoSchedule}
{{- end }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* A pod that answers requests; `args`: after those of all servers. */ -}}
{{- define "ds.serverPod" -}}
{{- $root := .root -}}
{{- with $root -}}
{{ include "ds.pod" . }}
terminationGracePeriodSeconds: {{ include "ds.grace" . }}
{{- if .Values.pull.sources }}
initContainers:
  # By itself, so that a source which does not answer shows as such; the server finds it in the cache.
  - name: pull
    image: {{ include "ds.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [/usr/bin/tini, --, ds-models, pull]
    args:
      {{- range .Values.pull.sources }}
      - {{ regexReplaceAll "^[^/=]+=" . "" | quote }}
      {{- end }}
      {{- include "ds.pullArgs" . | nindent 6 }}
    env: {{ include "ds.env" . | nindent 6 }}
    resources: {{ toYaml .Values.resources | nindent 6 }}
    securityContext: {{ include "ds.containerSecurity" . | nindent 6 }}
    volumeMounts: {{ include "ds.mounts" . | nindent 6 }}
{{- end }}
containers:
  - name: server
    image: {{ include "ds.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    {{- if .Values.pull.sources }}
    command: [/usr/bin/tini, --, ds-models, serve]
    {{- end }}
    args:
      {{- if .Values.pull.sources }}
      {{- toYaml .Values.pull.sources | nindent 6 }}
      {{- include "ds.pullArgs" . | nindent 6 }}
      - --
      {{- end }}
      {{- include "ds.args" . | nindent 6 }}
      {{- with $.args }}
      {{- . | nindent 6 }}
      {{- end }}
    env: {{ include "ds.env" . | nindent 6 }}
    ports:
      - {name: http, containerPort: {{ .Values.ports.http }}}
      - {name: grpc, containerPort: {{ .Values.ports.grpc }}}
      - {name: metrics, containerPort: {{ .Values.ports.metrics }}}
    # Until a gateway answers. Models that take long to load are readiness's affair.
    startupProbe:
      {{- include "ds.probe" (dict "root" . "path" "/health/live") | nindent 6 }}
      periodSeconds: 2
      timeoutSeconds: 5
      failureThreshold: {{ div (add .Values.probes.startupSeconds 1) 2 }}
    # A server whose models fail restarts them itself; only one that does not answer is restarted.
    livenessProbe:
      {{- include "ds.probe" (dict "root" . "path" "/health/live") | nindent 6 }}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
    # Every model answers, and the server is not stopping.
    readinessProbe:
      {{- include "ds.probe" (dict "root" . "path" "/health/ready") | nindent 6 }}
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: 2
    lifecycle:
      preStop:
        sleep: {seconds: {{ .Values.drain.preStopSeconds }}}
    resources: {{ toYaml .Values.resources | nindent 6 }}
    securityContext: {{ include "ds.containerSecurity" . | nindent 6 }}
    volumeMounts:
      {{- include "ds.mounts" . | nindent 6 }}
      {{- include "ds.secretMounts" . | nindent 6 }}
volumes:
  {{- include "ds.volumes" . | nindent 2 }}
  {{- include "ds.secretVolumes" . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "ds.spread" -}}
{{- with .Values.topologySpread }}
topologySpreadConstraints:
{{- range . }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ include "ds.servers" $ | nindent 8 }}
    # In an update the new pods are spread by themselves: the old ones are on their way out.
    matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- end }}

{{- /* New pods where the files that they read have changed. API keys are read again by themselves. */ -}}
{{- define "ds.podAnnotations" -}}
checksum/files: {{ toYaml .Values.files | sha256sum }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "ds.workload" -}}
{{- if .Values.multiNode.enabled }}
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
{{- else }}
apiVersion: apps/v1
kind: Deployment
{{- end }}
name: {{ include "ds.workloadName" . }}
{{- end }}

{{- define "ds.workloadName" -}}
{{ include "ds.name" . }}{{ if .Values.multiNode.enabled }}-group{{ end }}
{{- end }}

{{- define "ds.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 30}
    - {type: Pods, value: 2, periodSeconds: 30}
  selectPolicy: Max
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end }}

{{- /* What no schema can say, for it is about several values. */ -}}
{{- define "ds.check" -}}
{{- if .Values.spot.cloud }}
{{- $grace := include "ds.grace" . | int }}
{{- $notice := include "ds.notice" . | int }}
{{- if gt $grace $notice }}
{{- fail (printf "spot.cloud %s gives a pod %d seconds, but drain.preStopSeconds %d, flags.drain-timeout %v and drain.marginSeconds %d are %d together" .Values.spot.cloud $notice (int .Values.drain.preStopSeconds) (index .Values.flags "drain-timeout" | default 30) (int .Values.drain.marginSeconds) $grace) }}
{{- end }}
{{- end }}
{{- if and .Values.apiKeys.content .Values.apiKeys.secret }}
{{- fail (printf "apiKeys.content and apiKeys.secret %q are both given; one of them names the keys" .Values.apiKeys.secret) }}
{{- end }}
{{- if gt (int .Values.autoscaling.min) (int .Values.autoscaling.max) }}
{{- fail (printf "autoscaling.min %d is above autoscaling.max %d" (int .Values.autoscaling.min) (int .Values.autoscaling.max)) }}
{{- end }}
{{- if not (or .Values.multiNode.enabled .Values.models .Values.pull.sources (index .Values.flags "model-repository")) }}
{{- fail "models, pull.sources and flags.model-repository are all empty: there is nothing to serve" }}
{{- end }}
{{- end }}

{{- define "ds.vllmArgs" -}}
{{- with .Values.vllmArgs }}
- --
{{- range . }}
- {{ include "ds.word" . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What vLLM must be told alike on every node of a group. */ -}}
{{- define "ds.nodesArgs" -}}
- --tensor-parallel-size={{ .Values.multiNode.tensorParallel }}
- --pipeline-parallel-size={{ .Values.multiNode.pipelineParallel }}
- --nnodes={{ .Values.multiNode.nodes }}
- --master-addr=$(LWS_LEADER_ADDRESS)
- --master-port={{ .Values.multiNode.port }}
{{- range .Values.multiNode.args }}
- {{ include "ds.word" . | quote }}
{{- end }}
{{- end }}

{{- /* Ends when the leader's vLLM has: then nobody listens where the nodes have met. */ -}}
{{- define "ds.outliveLeader" -}}
import os, socket, time
try:
    while True:
        socket.create_connection((os.environ["LWS_LEADER_ADDRESS"], {{ .Values.multiNode.port }}), 5).close()
        time.sleep(1)
except OSError:
    pass
{{- end }}
