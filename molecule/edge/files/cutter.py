"""Two servers that take a request, write down its method, and cut the connection."""

import socket
import threading


def serve(port):
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            sock, _ = listener.accept()
            with sock, open("/root/asked", "a", encoding="ascii") as log:
                log.write(sock.recv(65536).split(b" ")[0].decode() + "\n")


for number in (8991, 8992):
    threading.Thread(target=serve, args=(number,)).start()
