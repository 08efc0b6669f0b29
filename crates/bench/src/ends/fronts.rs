//! What stands between the client and the server.

use crate::children::{Process, free_port};
use anyhow::Context as _;
use core::time::Duration;
use outlive_gateway::{Gateway, Running};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tokio::net::TcpStream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Direct,
    Gateway,
    HaProxy,
    Nginx,
}

impl Kind {
    pub(super) const ALL: [Kind; 4] = [Kind::Direct, Kind::Gateway, Kind::HaProxy, Kind::Nginx];
}

/// One that runs.
pub(super) struct Front {
    pub(super) addr: SocketAddr,
    gateway: Option<Running>,
    process: Option<Process>,
    folder: Option<PathBuf>,
}

impl Front {
    pub(super) async fn start(kind: Kind, server: SocketAddr) -> anyhow::Result<Front> {
        match kind {
            Kind::Direct => Ok(Front { addr: server, gateway: None, process: None, folder: None }),
            Kind::Gateway => {
                let gateway =
                    Gateway::builder().listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).workers(1).member("a", server).start().await?;
                Ok(Front { addr: gateway.local_addr(), gateway: Some(gateway), process: None, folder: None })
            }
            Kind::HaProxy => {
                let addr = free_port()?;
                let text = format!(
                    "defaults\n mode http\n timeout connect 1s\n timeout client 60s\n timeout server 60s\n timeout http-keep-alive 60s\n\
                     listen x\n bind {addr}\n server a {server}\n"
                );
                Front::process("haproxy", addr, "haproxy.cfg", &text, |command, folder| {
                    command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg"));
                })
                .await
            }
            Kind::Nginx => {
                let addr = free_port()?;
                let temporary: String =
                    ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!(" {name}_temp_path {name};\n")).concat();
                let text = format!(
                    "daemon off;\npid pid;\nworker_processes 1;\nerror_log stderr crit;\nevents {{}}\nhttp {{\n access_log off;\n{temporary}\
                     upstream a {{ server {server}; keepalive 8; }}\n server {{ listen {addr}; client_max_body_size 0; location / {{\n\
                     proxy_pass http://a; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n"
                );
                Front::process("nginx", addr, "nginx.conf", &text, |command, folder| {
                    command.arg("-p").arg(folder).args(["-e", "stderr", "-c"]).arg(folder.join("nginx.conf"));
                })
                .await
            }
        }
    }

    async fn process(
        program: &str,
        addr: SocketAddr,
        file: &str,
        text: &str,
        arguments: impl FnOnce(&mut Command, &PathBuf),
    ) -> anyhow::Result<Front> {
        let folder = std::env::temp_dir().join(format!("outlive-bench-{program}-{}", addr.port()));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(file), text)?;
        let mut command = Command::new(program);
        arguments(&mut command, &folder);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("{program} IS MISSING: it cannot be started, and there is nothing to compare with"))?;
        let front = Front { addr, gateway: None, process: Some(Process::new(child)), folder: Some(folder) };
        let serving = async {
            while TcpStream::connect(addr).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), serving).await.with_context(|| format!("{program} does not listen"))?;
        Ok(front)
    }

    pub(super) async fn stop(mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.shutdown(Duration::ZERO).await;
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            process.end();
        }
        if let Some(folder) = &self.folder {
            // It holds a configuration; a folder that stays in the temporary one does no harm.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// What a program says of itself, in a line.
pub(super) fn version(program: &str, flag: &str) -> anyhow::Result<String> {
    let output = Command::new(program).arg(flag).output().with_context(|| format!("{program} IS MISSING"))?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).lines().next().unwrap_or_default().split(" - ").next().unwrap_or_default().to_owned())
}
