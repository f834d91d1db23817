"""One BitTorrent node for the bench, tuned as `docs/benchmarks.md` says."""
import os
import sys
import time

import libtorrent as lt

role, torrent, path, ready, *addresses = sys.argv[1:]
PORT = 6881
session = lt.session({
    "listen_interfaces": f"0.0.0.0:{PORT}",
    "enable_outgoing_utp": False, "enable_incoming_utp": False,
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "out_enc_policy": 2, "in_enc_policy": 2,
    "unchoke_interval": 1, "optimistic_unchoke_interval": 2,
    "unchoke_slots_limit": -1 if os.environ.get("SLOTS", "4") == "-1" else int(os.environ.get("SLOTS", "4")),
    "connection_speed": 500, "connections_limit": 500, "allow_multiple_connections_per_ip": True,
    "alert_mask": 0,
})
if role in ("seed", "make"):
    files = lt.file_storage()
    lt.add_files(files, path)
    made = lt.create_torrent(files, 256 * 1024, lt.create_torrent.v1_only)
    if "@TRACKER@":
        made.add_tracker("@TRACKER@")
    lt.set_piece_hashes(made, os.path.dirname(path))
    with open(torrent, "wb") as out:
        out.write(lt.bencode(made.generate()))
    if role == "make":
        sys.exit(0)
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(torrent)
    params.save_path = os.path.dirname(path)
    params.flags = params.flags | lt.torrent_flags.seed_mode
    handle = session.add_torrent(params)
    open(ready, "w").close()
    while True:
        time.sleep(1)

params = lt.add_torrent_params()
params.ti = lt.torrent_info(torrent)
params.save_path = path + ".dir"
handle = session.add_torrent(params)
for address in addresses:
    handle.connect_peer((address, PORT))
while not handle.status().is_seeding:
    time.sleep(0.02)
# Linked, not moved: the others still want it from here. The parent ends this process.
os.link(os.path.join(params.save_path, "content"), path)
open(path + ".done", "w").close()
while True:
    time.sleep(1)
