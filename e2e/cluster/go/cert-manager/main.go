// cert-manager's own controllers, as many as sign a CertificateRequest for issuers of types CA and
// SelfSigned: those of issuers, the approver, and the two that sign. Its program is in a module of its own
// that is not published; what it does beyond that (leader election, metrics, ACME) nothing here needs.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/cert-manager/cert-manager/pkg/controller"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

// run runs every controller that the imports above made known, until the context ends.
func run(ctx context.Context) error {
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:         os.Getenv("KUBECONFIG"),
		KubernetesAPIQPS:   50,
		KubernetesAPIBurst: 100,
		IssuerOptions: controller.IssuerOptions{
			// Where the Secrets of ClusterIssuers are.
			ClusterResourceNamespace: os.Getenv("CLUSTER_RESOURCE_NAMESPACE"),
		},
	})
	if err != nil {
		return err
	}
	shared, err := factory.Build()
	if err != nil {
		return err
	}
	known := controller.Known()
	ended := make(chan error, len(known))
	var running sync.WaitGroup
	for name, construct := range known {
		constructed, err := construct(factory)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		running.Go(func() {
			if err := constructed.Run(1, ctx); err != nil {
				ended <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	// After all of them said what they watch.
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	log.Printf("%d controllers run", len(known))
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		running.Wait()
		return nil
	}
}
