//! Compiles the protocol definitions; no compiler has to be installed for it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    if std::env::var_os("CARGO_FEATURE_GRPC").is_none() {
        return Ok(());
    }
    let files = ["dragonfly/v1/scheduler.proto", "dragonfly/v1/node.proto"];
    let set = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".dragonfly.v1.ReadChunk")
        // One text for all nodes.
        .bytes(".dragonfly.v1.PolicyUpdate")
        .compile_fds(set)?;
    Ok(())
}
