// Definitions of neighbours' kinds, read from these modules' files. Nothing of it is compiled.
module dragonfly/e2e/crds

go 1.26

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
