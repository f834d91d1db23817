//! An origin that answers what a test says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Status line and headers, body, and the body's bytes a second (0: as fast as it goes).
pub type Answer = (String, Vec<u8>, u64);

/// Its URL; it closes each connection after one answer, which `says` gives for the request's head in lower case.
pub async fn origin(says: impl FnMut(&str) -> Answer + Send + 'static) -> String {
    let says = Arc::new(Mutex::new(says));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let says = says.clone();
            tokio::spawn(async move {
                let (r, mut w) = stream.split();
                let mut lines = BufReader::new(r).lines();
                let mut head = String::new();
                while let Ok(Some(line)) = lines.next_line().await {
                    if line.is_empty() {
                        break;
                    }
                    head += &line.to_ascii_lowercase();
                    head.push('\n');
                }
                let (answer, body, rate) = (*says.lock().unwrap())(&head);
                let answer = format!("HTTP/1.1 {answer}connection: close\r\n\r\n");
                if w.write_all(answer.as_bytes()).await.is_err() || head.starts_with("head ") {
                    return;
                }
                for part in body.chunks(16 << 10) {
                    if w.write_all(part).await.is_err() {
                        return;
                    }
                    if rate > 0 {
                        let pause = Duration::from_secs_f64(part.len() as f64 / rate as f64);
                        tokio::time::sleep(pause).await;
                    }
                }
                let _ = w.shutdown().await;
            });
        }
    });
    url
}
