//! What is generated of the other system's API.
#![allow(
    clippy::all,
    clippy::pedantic,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    dead_code
)]

pub(crate) mod scheduler {
    pub(crate) mod v2 {
        tonic::include_proto!("scheduler.v2");
    }
}

pub(crate) mod dfdaemon {
    pub(crate) mod v2 {
        tonic::include_proto!("dfdaemon.v2");
    }
}

pub(crate) mod grpc {
    pub(crate) mod health {
        pub(crate) mod v1 {
            tonic::include_proto!("grpc.health.v1");
        }
    }
}
