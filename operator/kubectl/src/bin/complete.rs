//! `kubectl_complete-dragonfly`: what kubectl asks when Tab is pressed behind `kubectl dragonfly`.

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    dragonfly_kubectl::complete::run().await
}
