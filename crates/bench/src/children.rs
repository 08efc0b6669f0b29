//! Processes that a measurement starts, and ends by their id however it ends.

use crate::measure::now;
use anyhow::{Context, bail};
use core::time::Duration;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A child process; it is killed when this is dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn new(child: Child) -> Process {
        Process(child)
    }

    /// SIGTERM, which lets it end its own children, and waits until it is gone.
    pub(crate) fn end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        // A child that has ended already is what is wanted.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // A child that has ended already is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// SIGSTOP: it is silent, and its connections stay open.
    pub(crate) fn freeze(&self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).context("a node cannot be stopped")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A node of the workload application.
pub(crate) struct AppNode {
    pub(crate) process: Process,
    pub(crate) name: String,
    pub(crate) http: SocketAddr,
    pub(crate) peer: SocketAddr,
}

impl AppNode {
    /// Starts `outlive-bench app` on free ports; it serves when this returns.
    pub(crate) fn start(name: &str, durability: &str, join: &[String]) -> anyhow::Result<AppNode> {
        let peer = free_port()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["app", "--http", "127.0.0.1:0", "--name", name, "--durability", durability, "--peer", &peer.to_string()]);
        for other in join {
            command.args(["--join", other]);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take();
        let process = Process(child);
        let mut line = String::new();
        BufReader::new(stdout.context("a child without an output")?).read_line(&mut line)?;
        let Some(http) = line.trim().strip_prefix("ready http://") else { bail!("the application did not start: {line:?}") };
        Ok(AppNode { process, name: name.to_owned(), http: http.parse()?, peer })
    }
}

pub(crate) fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// A Redis server of our own, without persistence.
pub(crate) struct Redis {
    pub(crate) process: Process,
    pub(crate) port: u16,
    directory: PathBuf,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.process.kill();
        // It holds nothing; a folder that stays in the temporary one does no harm.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Redis {
    /// Starts `redis-server` on a free port.
    pub(crate) fn start() -> anyhow::Result<Redis> {
        let port = free_port()?.port();
        let directory = std::env::temp_dir().join(format!("outlive-bench-redis-{port}"));
        std::fs::create_dir_all(&directory)?;
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]).arg(&directory);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.context("REDIS IS MISSING: `redis-server` cannot be started, and without it there is nothing to compare with")?;
        let redis = Redis { process: Process(child), port, directory };
        let until = now() + Duration::from_secs(30);
        while redis.round_trip().is_err() {
            anyhow::ensure!(now() < until, "REDIS IS MISSING: `redis-server` was started and does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(redis)
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// One bare exchange of some bytes with another process over loopback, on an open connection.
    pub(crate) fn round_trip(&self) -> std::io::Result<Duration> {
        let mut stream = self.connect()?;
        let mut ping = || {
            let start = now();
            stream.write_all(b"PING\r\n")?;
            stream.read_exact(&mut [0; 7])?;
            Ok(start.elapsed())
        };
        let mut times = (0..200).map(|_| ping()).collect::<std::io::Result<Vec<_>>>()?;
        times.sort_unstable();
        Ok(times[times.len() / 2])
    }

    /// What the server has counted since its start: commands, bytes in, bytes out. This question counts too.
    #[cfg(feature = "rivals")]
    pub(crate) fn counted(&self) -> anyhow::Result<[u64; 3]> {
        let mut stream = self.connect()?;
        stream.write_all(b"*2\r\n$4\r\nINFO\r\n$5\r\nstats\r\n*1\r\n$4\r\nQUIT\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let number = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).context("Redis does not count")?;
            Ok::<u64, anyhow::Error>(value.trim().parse()?)
        };
        Ok([number("total_commands_processed")?, number("total_net_input_bytes")?, number("total_net_output_bytes")?])
    }
}
