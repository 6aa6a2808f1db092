//! A port before a server: closed, silent, or open.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Connections end at once.
    Closed,
    /// They are accepted and never answered, also those that were open.
    Silent,
    Open,
}

/// It ends with the process: nothing of it is left anywhere.
#[derive(Clone)]
pub(super) struct Gate {
    /// `host:port`.
    pub(super) address: String,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Gate {
    pub(super) fn before(server: &str, state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let gate = Self { address, state: Arc::new((Mutex::new(state), Condvar::new())) };
        let (here, server) = (gate.clone(), server.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (gate, server, client) = (here.clone(), server.clone(), client.unwrap());
                std::thread::spawn(move || gate.pass(client, &server));
            }
        });
        gate
    }

    pub(super) fn turn(&self, state: State) {
        *self.state.0.lock().unwrap() = state;
        self.state.1.notify_all();
    }

    /// Waits while it is silent; whether it is open then.
    fn opens(&self) -> bool {
        let waiting = self.state.1.wait_while(self.state.0.lock().unwrap(), |s| *s == State::Silent);
        *waiting.unwrap() == State::Open
    }

    fn pass(&self, client: TcpStream, server: &str) {
        if !self.opens() {
            return;
        }
        let Ok(server) = TcpStream::connect(server) else { return };
        let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let gate = self.clone();
        std::thread::spawn(move || gate.pump(from, to));
        self.pump(server, client);
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut chunk = [0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            if !self.opens() || to.write_all(&chunk[..n]).is_err() {
                break;
            }
        }
        for stream in [from, to] {
            let _gone = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
