//! `kubectl-dragonfly`: see the library.

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    dragonfly_kubectl::run().await
}
