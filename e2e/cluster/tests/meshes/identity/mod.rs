//! Who is who on a real cluster: certificates for projected tokens, what is refused and in which words,
//! revocation, a CA that is replaced under load, and where secrets are.
//!
//! One test, for meshes on the same nodes exclude each other; its steps are functions with names of
//! their own, which `docs/threat-model.md` refers to.

mod mesh;
mod rotation;
mod secrets;
mod tokens;

use mesh::Standing;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_on_a_cluster_knows_who_is_who() {
    let standing = Standing::up().await;
    mesh::every_part_has_a_certificate_and_a_download_goes_through(&standing).await;
    secrets::secrets_are_where_they_are_needed_and_nowhere_else(&standing).await;
    rotation::certificates_are_replaced_under_load_and_no_download_fails(&standing).await;
    tokens::tokens_of_others_are_refused_with_the_reason(&standing).await;
    tokens::a_clock_a_day_behind_is_told_so(&standing).await;
    tokens::a_revoked_node_is_out_within_a_minute_and_back_when_it_is_let_in(&standing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make test-full runs it"]
async fn a_mesh_on_a_cluster_outlives_its_ca() {
    let standing = Standing::up().await;
    rotation::the_ca_is_replaced_under_load_and_no_download_fails(&standing).await;
    rotation::an_issuer_signs_the_ca_under_load_and_no_download_fails(&standing).await;
}
