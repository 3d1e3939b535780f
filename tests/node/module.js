// A module by Node's SDK: says its twin, answers methods, says desired patches, and ends when it is told to.
const { ModuleClient, Message } = require("azure-iot-device");
const { Mqtt } = require("azure-iot-device-mqtt");

const say = (document) => process.stdout.write(JSON.stringify(document) + "\n");

async function main() {
  const client = await ModuleClient.fromEnvironment(Mqtt);
  await client.open();
  client.onMethod("ping", (request, response) => response.send(200, { pong: request.payload }));
  client.onMethod("end", (request, response) => response.send(200, {}).then(() => client.close()).then(() => process.exit(0)));
  const twin = await client.getTwin();
  await new Promise((done, failed) => twin.properties.reported.update({ client: "node" }, (error) => (error ? failed(error) : done())));
  await client.sendOutputEvent("out", new Message(JSON.stringify({ from: "node" })));
  say({ desired: twin.properties.desired });
  let known = false; // the SDK also calls the handler with what it has already
  twin.on("properties.desired", (patch) => { if (known) say(patch); known = true; });
}

main().catch((error) => { console.error(error); process.exit(1); });
