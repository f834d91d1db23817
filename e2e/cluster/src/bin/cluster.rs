//! `cluster`: a Kubernetes to play with, and the process that holds one for tests.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use dragonfly_cluster::image::{self, Architecture};
use dragonfly_cluster::tools::Tool;
use dragonfly_cluster::{
    Cluster, ClusterOptions, Failed, IpFamily, Result, mesh, standing, supervisor,
};

/// A real Kubernetes on this machine: etcd, API server, controllers, nodes with containerd, a registry.
#[derive(Debug, Parser)]
#[command(name = "cluster", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster that stays until it is taken down
    Up {
        /// How many nodes; containerd 1.6 and 2.x by turns. 0: an API server alone
        #[arg(long, default_value_t = 2)]
        nodes: usize,
        /// The addresses of nodes, pods and services
        #[arg(long, value_enum, default_value_t)]
        family: IpFamily,
        /// Push the images of this project to its registry, from programs built beside this one
        #[arg(long)]
        images: bool,
        /// Take it down again when this program ends, however it ends
        #[arg(long)]
        hold: bool,
    },
    /// Take clusters down that `up` started: the one of a number, or all
    Down {
        /// Which; all that `up` left if none is said
        number: Option<u8>,
    },
    /// List the clusters of this machine
    Status,
    /// Build what clusters are made of into the cache, where it is missing
    Build {
        /// What; all that a cluster with nodes needs if none is said
        #[arg(value_enum)]
        tools: Vec<Tool>,
    },
    /// Write an image of this project as an OCI layout in a tar, or push it to a cluster
    Image {
        /// Which
        name: String,
        /// The built program
        #[arg(long)]
        program: PathBuf,
        /// The processor that it is for
        #[arg(long, value_enum, default_value_t = Architecture::HERE)]
        arch: Architecture,
        /// The tag
        #[arg(long, default_value = "dev")]
        tag: String,
        /// Where the tar is written
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// The cluster whose registry gets it
        #[arg(long, value_name = "NUMBER")]
        push: Option<u8>,
    },
    /// Print a mesh with keys of its own, for `kubectl apply -f -`, and an origin to try it with
    Mesh,
    /// Measure an operator with many fake nodes, for `make bench BENCH=control`: figures as JSON
    #[command(hide = true)]
    Control {
        #[arg(long)]
        nodes: usize,
        #[arg(long)]
        preheats: usize,
    },
    /// Hold a cluster for the process at the other end of standard input
    #[command(hide = true)]
    Supervise {
        /// Hold it itself, not by a supervisor that it guards
        #[arg(long)]
        unguarded: bool,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse().command).await {
        // Not waiting for threads that read what will not come.
        Ok(()) => std::process::exit(0),
        Err(wrong) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "cluster: {wrong}");
            std::process::exit(1)
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Up {
            nodes,
            family,
            images,
            hold,
        } => up(nodes, family, images, hold).await,
        Command::Down { number } => down(number),
        Command::Status => {
            for cluster in standing::all() {
                println!("{cluster}");
            }
            Ok(())
        }
        Command::Build { tools } => {
            let tools = if tools.is_empty() {
                Tool::CLUSTER.to_vec()
            } else {
                tools
            };
            for tool in tools {
                for (name, path) in tool.built()? {
                    println!("{name}\t{}", path.display());
                }
            }
            Ok(())
        }
        Command::Image {
            name,
            program,
            arch,
            tag,
            output,
            push,
        } => {
            let image = image::component(&name)?.image(arch, &program)?;
            let tagged = format!("{name}:{tag}");
            if output.is_none() && push.is_none() {
                return Err(Failed(
                    "say where the image goes: --output or --push".to_owned(),
                ));
            }
            if let Some(path) = output {
                image.write_layout(&path, &tagged)?;
                println!("{} {}", path.display(), image.manifest().digest);
            }
            if let Some(number) = push {
                let reference = standing::find(number)?.load_image(&image, &tagged).await?;
                println!("{reference}");
            }
            Ok(())
        }
        Command::Mesh => {
            print!("{}---\n{}", mesh::manifest()?, mesh::ORIGIN);
            Ok(())
        }
        Command::Control { nodes, preheats } => {
            println!(
                "{}",
                dragonfly_cluster::control::measure(nodes, preheats).await?
            );
            Ok(())
        }
        Command::Supervise { unguarded: false } => supervisor::guard(),
        Command::Supervise { unguarded: true } => supervisor::run().await,
    }
}

async fn up(nodes: usize, family: IpFamily, images: bool, hold: bool) -> Result<()> {
    let options = ClusterOptions::nodes(nodes).family(family);
    let begun = Instant::now();
    let cluster = Cluster::start(&options).await?;
    let took = begun.elapsed();
    if images && nodes > 0 {
        let beside =
            std::env::current_exe().map_err(|e| Failed::at("this program's own path", e))?;
        for component in &image::COMPONENTS {
            let program = beside.with_file_name(component.name);
            if !program.is_file() {
                eprintln!(
                    "cluster: {} is not built: no image of it",
                    program.display()
                );
                continue;
            }
            let image = component.image(Architecture::HERE, &program)?;
            let reference = cluster
                .load_image(&image, &format!("{}:dev", component.name))
                .await?;
            println!("image      {reference}");
        }
    }
    let kubectl = cluster.program("kubectl");
    let info = cluster.info().clone();
    for node in &info.nodes {
        println!(
            "node       {} {} {:?}",
            node.name, node.address, node.containerd
        );
    }
    if nodes > 0 {
        println!("registry   {} (in pods: registry.test)", info.registry);
    }
    if let Ok(kubectl) = kubectl {
        println!("kubectl    {}", kubectl.display());
    }
    println!("logs       {}", info.dir.join("logs").display());
    let up = format!("up in {:.1} s", took.as_secs_f64());
    if hold {
        println!("{up}; it goes when this ends");
        println!("export KUBECONFIG={}", info.kubeconfig.display());
        let ended = tokio::signal::ctrl_c().await;
        ended.map_err(|e| Failed::at("waiting for an interrupt", e))?;
        return cluster.stop().await;
    }
    cluster.keep().await?;
    println!("{up}; take it down with: make cluster-down");
    println!("export KUBECONFIG={}", info.kubeconfig.display());
    Ok(())
}

fn down(number: Option<u8>) -> Result<()> {
    standing::sweep()?;
    let mut any = false;
    for cluster in standing::all() {
        if number.map_or(cluster.kept(), |wanted| wanted == cluster.number()) {
            cluster.down()?;
            println!("cluster {} is down", cluster.number());
            any = true;
        }
    }
    match number {
        Some(number) if !any => Err(Failed(format!("there is no cluster {number}"))),
        _ => Ok(()),
    }
}
