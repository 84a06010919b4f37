"""Submit a prompt over NATS and wait for its acceptance. Needs `fusewire up`."""

import asyncio
import json

import nats


async def main():
    # The address of an embedded server is in .fusewire/up.json, and its keys are beside it.
    client = await nats.connect(
        "nats://localhost:4222",
        nkeys_seed=".fusewire/nats/keys/tenant-default.seed",
        inbox_prefix=b"_INBOX.default",
    )
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox)
    prompt = json.dumps({"prompt": "Is copper a metal?"}).encode()
    headers = {"Nats-Msg-Id": "order-17", "Fw-Reply-To": inbox}
    stored = await client.jetstream().publish("fw.in.default", prompt, headers=headers)
    if stored.duplicate:
        print("sent already")
    else:
        reply = await replies.next_msg(timeout=60)
        print(reply.data.decode())
    await client.close()


asyncio.run(main())
