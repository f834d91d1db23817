//! A BitTorrent tracker (BEP 3, compact answers of BEP 23) for the clients that find each other by
//! no other way: everybody is told of everybody.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use dragonfly_e2e::{Failed, Result};

/// Answers announces until it is killed.
pub(crate) fn serve(listen: &str) -> Result<()> {
    let listener = TcpListener::bind(listen).map_err(|e| Failed::at(listen, e))?;
    let mut peers: BTreeSet<(Ipv4Addr, u16)> = BTreeSet::new();
    for stream in listener.incoming().flatten() {
        // One after the other: a slow caller must not hold up the others for long.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let from = stream.peer_addr().map(|a| a.ip());
        let mut line = String::new();
        if BufReader::new(&stream).read_line(&mut line).is_err() {
            continue;
        }
        let port = line
            .split(['?', '&', ' '])
            .find_map(|p| p.strip_prefix("port="));
        if let (Ok(std::net::IpAddr::V4(ip)), Some(Ok(port))) = (from, port.map(str::parse)) {
            peers.insert((ip, port));
        }
        let mut compact = vec![];
        for (ip, port) in &peers {
            compact.extend_from_slice(&ip.octets());
            compact.extend_from_slice(&port.to_be_bytes());
        }
        let mut body =
            format!("d8:intervali1e12:min intervali1e5:peers{}:", compact.len()).into_bytes();
        body.extend_from_slice(&compact);
        body.push(b'e');
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = (&stream).write_all(&[head.as_bytes(), &body].concat());
    }
    Ok(())
}
