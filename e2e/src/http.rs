//! The little of an HTTP client that asking an admin port takes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Failed, Result};

/// Status and body.
pub async fn get(addr: SocketAddr, path: &str) -> Result<(u16, String)> {
    let asked = tokio::time::timeout(Duration::from_secs(5), ask(addr, path));
    let answer = asked
        .await
        .map_err(|_| Failed::at(addr, "no answer within 5 s"))?;
    let answer = answer.map_err(|e| Failed::at(addr, e))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| Failed::at(addr, "speaks no HTTP"))?;
    Ok((status, body.to_owned()))
}

async fn ask(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    // With 1.0 the answer ends with the connection and is not chunked.
    let request = format!("GET {path} HTTP/1.0\r\nhost: {addr}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
